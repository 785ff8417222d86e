"""Cityscapes for semantic segmentation: the finely annotated images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from datamodules.base import Split
from datamodules.images.image_folder import DamagedFileError, find_images
from datamodules.images.masks import IGNORE_INDEX, class_values, read_mask
from datamodules.layouts.submission import Submission
from datamodules.photos.annotated import MaskFiles, Photos, check_present
from datamodules.photos.segmentation import PhotoSegmentationDataModule

Annotation = Literal["label_ids", "train_ids"]

CLASSES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The label id of each class; its place is its train id."""
LABEL_IDS = range(34)
CODINGS: dict[Annotation, tuple[str, dict[int, int]]] = {
    "label_ids": (
        "_gtFine_labelIds.png",
        dict.fromkeys(LABEL_IDS, IGNORE_INDEX) | {label: train for train, label in enumerate(CLASSES.values())},
    ),
    "train_ids": ("_gtFine_labelTrainIds.png", class_values(len(CLASSES))),
}
"""What mask files end in, and the class of each value in them."""

IMAGE_ENDING = "_leftImg8bit"
FOLDERS = ("cityscapes", "Cityscapes", ".")
"""Where `leftImg8bit/` is looked for, below the root."""
PUBLISHED_AT = "https://www.cityscapes-dataset.com"


class CityscapesDataModule(PhotoSegmentationDataModule):
    """Street scenes of 2048x1024 pixels (width x height) whose pixels are one of 19 classes (Cordts et al., 2016).

    Images are `leftImg8bit/{train,val,test}/<city>/*_leftImg8bit.png`, and their masks
    `gtFine/<part>/<city>/*_gtFine_labelIds.png`, in `cityscapes/` below `root` or in `root` itself: 2,975 for training
    and 500 for validation, finely annotated. The files hold label ids, 0 to 33. The 19 that are measured become the
    train ids 0 to 18, which are the classes here; all others become 255. Files `_gtFine_labelTrainIds.png`, which
    cityscapesScripts makes of them, hold train ids already.

    Validation and test both are `val`, because the masks of the test set are not published. `predict` takes the 1,525
    images of `test`, where they are there, else `val`, and writes label ids as the Cityscapes server wants them.

    `index` is the position in the split, in the order of paths. See `PhotoSegmentationDataModule` for what batches
    hold.

    Args:
        root: The folder that holds the data set's folder; default $CONVSUITE_DATA, else ./data.
        batch_size: Training crops a batch and process; whole images come one by one.
        num_workers: Processes that decode and augment.
        train_size: Number of training images, a subset f(seed) in which smaller ones are contained; default: all.
        val_size: Number of validation images taken from the training images, f(seed), and not trained on; 0: no
            validation; default (null): `val`.
        seed: Seed of subsets, order and augmentation; default: that of `seed_everything`, else 0.
        predict_root: Folder of images to predict at native size, searched recursively.
        annotation: `label_ids`, or `train_ids` to read `_gtFine_labelTrainIds.png`.
        crop_size: Height and width of a training crop.
        scale: Smallest and largest factor that training images are scaled by; null: they are not.
        flip: Mirror half of the training crops left to right.
        rotation: Largest angle, in degrees, that training crops are turned by; 0: they are not.
        resize: The longer side, in pixels, to which every image and mask is resized first, in training and evaluation;
            measures are then those of reduced images, and predictions none to submit. Default (null): native sizes.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.

    Raises:
        ValueError: A value is out of range.
    """

    num_classes = len(CLASSES)
    class_names = tuple(CLASSES)

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 22,
        num_workers: int = 2,
        train_size: int | None = None,
        val_size: int | None = None,
        seed: int | None = None,
        predict_root: str | None = None,
        annotation: Annotation = "label_ids",
        crop_size: int = 512,
        scale: tuple[float, float] | None = (0.5, 2.0),
        flip: bool = True,
        rotation: float = 10.0,
        resize: int | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(
            root=root,
            batch_size=batch_size,
            num_workers=num_workers,
            train_size=train_size,
            val_size=val_size,
            seed=seed,
            predict_root=predict_root,
            drop_last=drop_last,
            crop_size=crop_size,
            scale=scale,
            flip=flip,
            rotation=rotation,
            resize=resize,
        )
        if annotation not in get_args(Annotation):
            raise ValueError(f"annotation must be one of {', '.join(get_args(Annotation))}, got {annotation!r}.")
        self.annotation = annotation

    def photos(self, split: Split) -> Photos:
        part = "train" if split == "train" else "val"
        photos = self._images(part)
        home, ending = photos.root, CODINGS[self.annotation][0]
        masks = [
            f"gtFine{file.removeprefix('leftImg8bit').removesuffix(f'{IMAGE_ENDING}.png')}{ending}"
            for file in photos.files
        ]
        check_present(home, masks, f"masks of leftImg8bit/{part}")
        decode = partial(read_annotation, annotation=self.annotation)
        return Photos(home, photos.files, MaskFiles(home, masks, decode))

    def photos_to_predict(self) -> Photos:
        return self._images("test" if (self._folder() / "leftImg8bit" / "test").is_dir() else "val")

    def server_submission(self) -> Submission:
        return Submission("results/cityscapes", tuple(CLASSES.values()), IMAGE_ENDING, "_pred_labelIds")

    def _images(self, part: str) -> Photos:
        home = self._folder()
        folder = f"leftImg8bit/{part}"
        if not (home / folder).is_dir():
            raise FileNotFoundError(f"{home / folder} is missing. {self._how_to_get()}")
        files = [f"{folder}/{file}" for file in find_images(home / folder, folder)]
        images = [file for file in files if file.endswith(f"{IMAGE_ENDING}.png")]
        if not images:
            raise FileNotFoundError(f"{home / folder} holds no *{IMAGE_ENDING}.png. {self._how_to_get()}")
        return Photos(home, images)

    def _folder(self) -> Path:
        """The folder that holds `leftImg8bit`."""
        for name in FOLDERS:
            if (Path(self.root) / name / "leftImg8bit").is_dir():
                return Path(self.root) / name
        raise FileNotFoundError(f"There is no Cityscapes in {Path(self.root).absolute()}. {self._how_to_get()}")

    def _how_to_get(self) -> str:
        return (
            "Expected leftImg8bit/{train,val,test}/<city>/ and gtFine/{train,val}/<city>/ in cityscapes/ below root, "
            "or in root itself: set root or CONVSUITE_DATA, and unpack leftImg8bit_trainvaltest.zip and "
            f"gtFine_trainvaltest.zip ({PUBLISHED_AT}) there."
        )


def read_annotation(path: Path, annotation: Annotation) -> Tensor:
    """The classes (train ids) in a mask file, uint8 (H, W).

    Raises:
        DamagedFileError: The file cannot be read, or holds a value that is no class; where it holds the ids of the
            other kind, the message says so.
    """
    try:
        return read_mask(path, CODINGS[annotation][1])
    except DamagedFileError as error:
        other: Annotation = "train_ids" if annotation == "label_ids" else "label_ids"
        if _holds(path, other):
            raise DamagedFileError(
                f"The mask {path} seems to hold {other.replace('_', ' ')} in place of {annotation.replace('_', ' ')}: "
                f"make it again with cityscapesScripts, or set annotation: {other} and name such files "
                f"*{CODINGS[other][0]}. ({error})"
            ) from error
        raise


def _holds(path: Path, annotation: Annotation) -> bool:
    try:
        read_mask(path, CODINGS[annotation][1])
    except DamagedFileError:
        return False
    return True
