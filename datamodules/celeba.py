"""CelebA's aligned faces, or any folder of images, as squares of one size for generative networks."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.base import Split
from datamodules.images.crop import Crop
from datamodules.images.image_folder import DamagedFileError
from datamodules.images.in_memory import Unlabelled
from datamodules.images.mapped_images import PARTITIONS, Catalogue, MappedDataModule
from datamodules.listing import list_folder, list_named

IMAGE_FOLDER, PARTITION_FILE = "img_align_celeba", "list_eval_partition.txt"
PUBLISHED_AT = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


class CelebADataModule(MappedDataModule):
    """202,599 aligned faces of 178x218 pixels (Liu, Luo, Wang and Tang, 2015), or a folder of images; no labels.

    The official layout is `<root>/celeba/img_align_celeba/*.jpg` beside `list_eval_partition.txt`, which says for each
    image whether it is for training (0), validation (1) or test (2). A folder has training images only. Whether a
    split is empty is asked when it is used, not before: a generative task needs no validation images.

    `prepare_data` decodes, crops and resizes all images once, into a `MemoryMap` in `cache_root` that may be deleted at
    any time: 2.5 GB for CelebA at 64 pixels, 10 GB at 128. It is named after the names, sizes and times of change of
    the image files, the crop and the image size, so a change of any makes another one. Batches hold `image` uint8
    (N, 3, H, W) and `index` (N,), the position in the list (000001.jpg is 0; in a folder in the order of paths); on the
    device images are in [-1, 1].

    Images of any mode become RGB; an alpha channel is left out. More than 8 bits a channel are an error.

    Args:
        root: The folder that holds `celeba/`; default $CONVSUITE_DATA, else ./data.
        batch_size: Samples a batch and process.
        num_workers: Processes that load ahead; 0 is fastest here.
        train_size: Number of training images, a subset f(seed); default: all (outside `val_size`). With one seed a
            smaller subset is part of a larger one.
        val_size: Number of validation images taken from the training images, f(seed), and disjoint from those that are
            trained on; 0: no validation; default (null): the official validation images.
        seed: Seed of subsets, order and mirroring; default: that of `seed_everything`, else 0.
        image_size: Height and width of the square, in pixels.
        crop: What becomes the square. A fraction, above 0 and at most 1: the central square whose side is this
            fraction of the image's shorter side, here its width. 1 (default) is the central 178x178 of the official
            images, "cropped and resized" as in the paper; other work cuts 140 (0.7865) or 108 (0.6067) of them.
            `as_published`: the whole image, squashed, as the paper's published code does.
        enlarge: Allow images whose crop is smaller than `image_size`, and enlarge it. Otherwise they are an error.
        flip: Mirror half of the training images of each epoch left to right, f(seed, epoch, index).
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others, as published.
        folder: A folder of images in place of CelebA, searched recursively; hidden files are left out.
        skip_damaged: Leave out images that cannot be decoded, with a warning that names them. Otherwise the first is
            an error.
        cache_root: Where memory maps are kept; default $CONVSUITE_CACHE, else ~/.cache/convsuite.

    Raises:
        ValueError: A value is out of range.
    """

    in_channels = 3
    cache_folder = "celeba"
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int | None = None,
        seed: int | None = None,
        image_size: int = 64,
        crop: Crop = 1.0,
        enlarge: bool = False,
        flip: bool = False,
        drop_last: bool = True,
        folder: str | None = None,
        skip_damaged: bool = False,
        cache_root: str | None = None,
    ) -> None:
        super().__init__(
            root=root,
            batch_size=batch_size,
            num_workers=num_workers,
            train_size=train_size,
            val_size=val_size,
            seed=seed,
            predict_root=None,
            drop_last=drop_last,
            image_size=image_size,
            crop=crop,
            enlarge=enlarge,
            flip=flip,
            skip_damaged=skip_damaged,
            cache_root=cache_root,
        )
        self.folder = None if folder is None else Path(folder).expanduser()

    def prepare_data(self) -> None:
        """Decode all images into the memory map, as `MappedDataModule` does; prediction does not ask for it."""
        if self.trainer is None or not self.trainer.predicting:
            super().prepare_data()

    def setup(self, stage: str) -> None:
        """Open the memory map, after `prepare_data` where one process works alone and has not called it.

        `predict` opens nothing before its loader is asked for: a generator makes its images from noise, and needs no
        data for it.
        """
        if stage != "predict":
            super().setup(stage)

    def predict_dataloader(self) -> DataLoader:
        super().setup("predict")
        return super().predict_dataloader()

    def make_predict(self) -> Unlabelled:
        test = self.make_test()
        self._filled("test", test)
        return Unlabelled(test, "test")

    def how_to_fill(self, split: Split) -> str:
        if split == "val" and self.val_size == 0:
            return super().how_to_fill(split)
        place = f"The folder {self.folder}" if self.folder else f"{self._layout / PARTITION_FILE}"
        found = f"{place} has no {split} images"
        if split == "val":
            return f"{found}: set val_size to take some from the training images, or 0 for no validation."
        if split == "test":
            return (
                f"{found}: measure on the train or val split (val_size takes some from the training images), or use "
                f"the official layout with a {PARTITION_FILE} that gives some images the partition 2."
            )
        return f"{found}: give some images the partition 0."

    @property
    def _layout(self) -> Path:
        return Path(self.root) / "celeba"

    def list_images(self) -> Catalogue:
        if self.folder is not None:
            listing = list_folder(self.folder, "folder")
            return Catalogue(listing, torch.full((len(listing),), PARTITIONS["train"]))
        images, partition_file = self._layout / IMAGE_FOLDER, self._layout / PARTITION_FILE
        for path in (images, partition_file):
            if not path.exists():
                raise FileNotFoundError(
                    f"There is no {path.absolute()}. Set root or CONVSUITE_DATA to the folder that holds "
                    f"celeba/{IMAGE_FOLDER}/ and celeba/{PARTITION_FILE} (published at {PUBLISHED_AT}), or folder to "
                    "any folder of images."
                )
        files, partition = read_partition(partition_file)
        return Catalogue(list_named(images, files), partition)


def read_partition(path: Path) -> tuple[list[str], Tensor]:
    """File names and partitions (int64) of a list_eval_partition.txt: on each line `000001.jpg 0`.

    Raises:
        DamagedFileError: A line is something else, a file is named twice, or there is none; the line is named.
    """
    files: list[str] = []
    partition: list[int] = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("0", "1", "2"):
            raise DamagedFileError(
                f"{path}, line {number}: expected a file name and its partition (0 train, 1 val, 2 test), as in "
                f"'000001.jpg 0', got {line!r}. Fetch the file again, or repair the line."
            )
        files.append(fields[0])
        partition.append(int(fields[1]))
    if not files:
        raise DamagedFileError(f"{path} names no image: fetch the file again.")
    if len(set(files)) < len(files):
        twice = next(file for file, count in Counter(files).items() if count > 1)
        raise DamagedFileError(f"{path} names {twice} more than once: fetch the file again, or repair it.")
    return files, torch.tensor(partition)
