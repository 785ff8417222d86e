"""Tiny copies of ImageNet in its layouts: noisy photos of 24-40 pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from tests.helpers.cats_dogs import write_photo

WORDS = {
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n03126707": "crane",
}
"""Classes and what they stand for; two of them have the same name, as in ImageNet."""
CLASSES = tuple(WORDS)
NUMBERS = {"1": "n03126707", "2": "n01440764", "3": "n02012849"}
"""The devkit numbers the classes in another order."""


def write_class_tree(folder: Path, classes: Sequence[str] = CLASSES, **parts: int) -> Path:
    """Write `folder/<part>/<class>/<class>_<number>.JPEG`, ... and return `folder`.

    Args:
        folder: The data set's folder.
        classes: Names of the folders.
        parts: Photos a class, by part: train=4, val=2.
    """
    seed = 0
    for part, count in parts.items():
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                write_photo(folder / part / name / f"{name}_{number}.JPEG", "cat", seed)
                seed += 1
    return folder


def write_official(
    folder: Path, train: int = 4, val: int = 2, labels: Literal["folders", "devkit", "kaggle"] = "folders"
) -> Path:
    """Write the official layout and return `folder`; its validation photos are labelled in one of three ways.

    With "kaggle", `folder` ends in ILSVRC/Data/CLS-LOC, and the labels lie beside ILSVRC. Flat photos belong to
    `flat_label` of their number.
    """
    if labels == "folders":
        return write_class_tree(folder, train=train, val=val)
    write_class_tree(folder, train=train)
    numbers = range(1, val * len(CLASSES) + 1)
    for number in numbers:
        write_photo(folder / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", "dog", number)
    if labels == "devkit":
        write_devkit(folder / "ILSVRC2012_devkit_t12" / "data", [flat_label(number) for number in numbers])
    else:
        boxes = [f"ILSVRC2012_val_{number:08d},{flat_label(number)} 1 2 3 4 \n" for number in reversed(numbers)]
        (folder.parents[2] / "LOC_val_solution.csv").write_text("".join(["ImageId,PredictionString\n", *boxes]))
        names = "".join(f"{wnid} {words}\n" for wnid, words in WORDS.items())
        (folder.parents[2] / "LOC_synset_mapping.txt").write_text(names)
    return folder


def flat_label(number: int) -> str:
    """The class of the flat validation photo of this number."""
    return CLASSES[(2 * number) % len(CLASSES)]


def write_devkit(folder: Path, wnids: Sequence[str]) -> None:
    """Write the devkit's ground truth and meta.mat, in which one group of classes is listed, too."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    number_of = {wnid: number for number, wnid in NUMBERS.items()}
    truth = "".join(f"{number_of[wnid]}\n" for wnid in wnids)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    rows = [(int(number), wnid, WORDS[wnid], 0) for number, wnid in NUMBERS.items()] + [(4, "n00000001", "entity", 3)]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=fields)})


def write_tiny_imagenet(folder: Path, train: int = 4, val: int = 2) -> Path:
    """Write the layout of tiny-imagenet-200 and return `folder`."""
    annotations = []
    for place, wnid in enumerate(CLASSES):
        for number in range(train):
            write_photo(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", "cat", 100 * place + number)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
        for number in range(val):
            name = f"val_{(len(CLASSES) - place) * val + number}.JPEG"
            write_photo(folder / "val" / "images" / name, "dog", 100 * place + number)
            annotations.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    (folder / "wnids.txt").write_text("".join(f"{wnid}\n" for wnid in reversed(CLASSES)))
    others = "n00000001\tentity\n"
    (folder / "words.txt").write_text(others + "".join(f"{wnid}\t{words}\n" for wnid, words in WORDS.items()))
    return folder
