"""Nuclei in stained tissue: Naylor's TNBC images, MoNuSeg and the Data Science Bowl 2018."""

from __future__ import annotations

import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from datamodules.base import Split
from datamodules.images.decoding import usable_cores
from datamodules.images.tiles import TileAugmentation, TiledImages, tile_places
from datamodules.layouts.nuclei import LAYOUTS, AnnotatedFile, Part, Parts
from datamodules.layouts.nuclei_download import download_tnbc
from datamodules.segmentation import AnnotatedImage, SegmentationDataModule, WithoutMasks
from datamodules.splits import random_split

LayoutName = Literal["auto", "tnbc", "monuseg", "dsb2018"]
SplitBy = Literal["patient", "random", "published"]
Evaluate = Literal["tiles", "images"]
Colour = Literal["rgb", "grey"]

MEAN_AND_STD = {
    "rgb": ((0.6804888, 0.5042497, 0.6513415), (0.1901184, 0.2001028, 0.1579527)),
    "grey": ((0.5737104,), (0.1867064,)),
}


class NucleiDataModule(SegmentationDataModule):
    """Microscopic images whose pixels are background (0) or nucleus (1), in memory, cut into square tiles.

    Three layouts are found by themselves below `root`:

    - `tnbc`: `TNBC_NucleiSegmentation/Slide_XX/*.png` with masks of the same names in `GT_XX/`, 50 images of 512x512
      pixels, H&E, 11 patients (Naylor, Laé, Reyal and Walter, 2018). `download` fetches them;
    - `monuseg`: `monuseg/MoNuSeg 2018 Training Data/{Tissue Images,Annotations}` and `monuseg/MoNuSegTestData` as
      published (TIFF, and outlines in Aperio's XML), or `monuseg/{train,test}/{tissue_images,masks}` with masks as PNG;
      1000x1000 pixels, H&E (Kumar et al., 2017 and 2020). Outlines are preferred where both are there;
    - `dsb2018`: `dsb2018/stage1_train/<id>/images/<id>.png` with one object a file in `<id>/masks/`, many kinds of
      microscopes (Caicedo et al., 2019).

    Where objects are annotated one by one (outlines, and `dsb2018`), batches of evaluation hold `instances`. A pixel
    that two objects claim belongs to the first, in the order of outlines or of file names. Masks that show all nuclei
    together say nothing about which of them touch: there are no `instances` then.

    A mask is a palette or grey image of values 0 and 255 (or 1); its alpha channel is left out. An image's alpha
    channel is left out where it is opaque, as in the published PNG files; transparent pixels are an error, and so are
    more than 8 bits a channel.

    Tiles cover each image, evenly spaced from border to border: 4x4 tiles of 128 in 512x512 pixels, as in the Gaussian
    derivative paper, 8x8 in 1000x1000, where neighbours share 3 or 4 pixels (counted twice where tiles are evaluated).
    `index` is a tile's (or image's) position in the published data set: image after image and row by row, training part
    before test part, each from 0 where the parts are kept apart.

    What is trained and tested on is a function of the seed. `train_size`, `val_size` and `test_size` count

    - patients of all parts together with `split: patient`. No patient is in two sets. A patient is a slide in `tnbc`,
      TCGA-XX-XXXX in `monuseg` (the first three fields of a name); `dsb2018` does not name patients, so that each image
      counts as one, though some are of the same sample;
    - patients of the training part with `split: published`; the test set is the published test part (`monuseg`);
    - tiles, whatever image they are from, with `split: random`, as the paper deals out 600 and 200 of 800
      (`test_size: 200`, `val_size: 0`). That leaks: test tiles have neighbours from the same image in training, with
      the same stain and parts of the same nuclei, so results are better than they would be on a new patient.

    `mean` and `std` are those of six breast images of MoNuSeg's training part (A7-A13E, A7-A13F, AR-A1AK, AR-A1AS,
    E2-A14V, E2-A1B5), for every layout.

    Args:
        root: The folder that holds the data set's folder; default $CONVSUITE_DATA, else ./data.
        batch_size: Tiles a batch and process; whole images come one by one.
        num_workers: Processes that load ahead.
        train_size: Number of training patients (or tiles), a subset f(seed) in which smaller ones are contained;
            default: all outside of validation and test.
        val_size: Number of validation patients (or tiles); 0: no validation; default: a tenth of all, rounded up.
        test_size: Number of test patients (or tiles); default: a quarter of all, rounded up, as in the paper. Must be
            null with `split: published`.
        seed: Seed of subsets, order and augmentation; default: that of `seed_everything`, else 0.
        predict_root: Folder of images to predict at native size, searched recursively; default: predict the test images
            (with `split: random` the test tiles).
        layout: `tnbc`, `monuseg` or `dsb2018` where several are there; `auto`: the one that is.
        split: `patient`, `published` or `random`.
        tile_size: Height and width of a tile, in pixels.
        evaluate: What validation and test batches hold: `tiles`, or `images`, one whole image each.
        colour: `rgb`, or `grey` for one channel.
        orientations: Mirror and turn training tiles, f(seed, epoch, index): one of the 8 orientations of a square.
        stain_jitter: Vary the stains of training tiles, f(seed, epoch, index), see `TileAugmentation`: 0.05 is light,
            0.2 is strong, 0 (default) is off.
        download: Fetch Naylor's TNBC images where nothing is found (and `layout` is `auto` or `tnbc`): 25 MB from
            https://zenodo.org/records/2579118, version 1.1, verified by its MD5.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.

    Raises:
        ValueError: A value is out of range, or two do not go together.
    """

    num_classes = 2
    class_names = ("background", "nucleus")

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int | None = None,
        test_size: int | None = None,
        seed: int | None = None,
        predict_root: str | None = None,
        layout: LayoutName = "auto",
        split: SplitBy = "patient",
        tile_size: int = 128,
        evaluate: Evaluate = "tiles",
        colour: Colour = "rgb",
        orientations: bool = True,
        stain_jitter: float = 0.0,
        download: bool = False,
        drop_last: bool = False,
    ) -> None:
        super().__init__(root, batch_size, num_workers, train_size, val_size, seed, predict_root, drop_last)
        for key, value, choices in (
            ("layout", layout, LayoutName),
            ("split", split, SplitBy),
            ("evaluate", evaluate, Evaluate),
            ("colour", colour, Colour),
        ):
            if value not in get_args(choices):
                raise ValueError(f"{key} must be one of {', '.join(get_args(choices))}, got {value!r}.")
        if test_size is not None and test_size < 0:
            raise ValueError(f"test_size must be 0 (no test) or more, got {test_size}.")
        if test_size is not None and split == "published":
            raise ValueError("test_size must be null with split: published, whose test set is the published one.")
        if evaluate == "images" and split == "random":
            raise ValueError(
                "split: random deals out tiles, so no image is whole in any set: set evaluate: tiles, or another split."
            )
        if tile_size < 1:
            raise ValueError(f"tile_size must be at least 1 pixel, got {tile_size}.")
        if not 0 <= stain_jitter < 1:
            raise ValueError(f"stain_jitter must be 0 (off) or more and below 1, got {stain_jitter}.")
        self.test_size = test_size
        self.layout = layout
        self.split = split
        self.image_size = tile_size
        self.evaluate = evaluate
        self.colour = colour
        self.augmentation = TileAugmentation(self.seed, orientations, stain_jitter)
        self.download = download
        self.in_channels = {"rgb": 3, "grey": 1}[colour]
        self.mean, self.std = MEAN_AND_STD[colour]
        self._parts: Parts | None = None
        self._images: dict[Part, list[AnnotatedImage]] = {}

    def prepare_data(self) -> None:
        """Fetch Naylor's TNBC images, where `download` says so.

        Raises:
            FileNotFoundError: There is no data set, and none could be fetched; the message says how to get one.
        """
        if self.predicts_folder or self._found():
            return
        if not self.download or self.layout not in ("auto", "tnbc"):
            raise FileNotFoundError(self._how_to_get("there is none"))
        try:
            download_tnbc(Path(self.root))
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # a wrong checksum is a RuntimeError
            raise FileNotFoundError(self._how_to_get(f"the download failed: {error}")) from error

    def make_train_and_val(self) -> tuple[TiledImages, TiledImages | None]:
        train, val, _ = self._deal()
        images = self._open(self._training_parts)
        return (
            self._dataset(images, train, self.image_size, self.augmentation),
            self._dataset(images, val, self._evaluated_size) if len(val) else None,
        )

    def make_test(self) -> TiledImages:
        return self._make_test(self._evaluated_size)

    def make_predict(self) -> WithoutMasks:
        test = self._make_test(self.image_size if self.split == "random" else None)
        self._filled("test", test)
        return WithoutMasks(test)

    def how_to_fill(self, split: Split) -> str:
        if split == "test" and self.test_size == 0:
            return "test_size is 0: there is nothing to test. Set test_size, or use another split."
        return super().how_to_fill(split)

    @property
    def _evaluated_size(self) -> int | None:
        return self.image_size if self.evaluate == "tiles" else None

    @property
    def _training_parts(self) -> tuple[Part, ...]:
        """The published parts that training samples are taken from."""
        return ("train",) if self.split == "published" else ("train", "test")

    def _make_test(self, size: int | None) -> TiledImages:
        if self.split == "published":
            images = self._open(("test",))
            return self._dataset(images, torch.arange(len({image.group for image in images})), size)
        return self._dataset(self._open(self._training_parts), self._deal()[2], size)

    def _dataset(
        self,
        images: list[AnnotatedImage],
        dealt: Tensor,
        size: int | None,
        augmentation: TileAugmentation | None = None,
    ) -> TiledImages:
        """Tiles of `size` (None: whole images) of the patients with the `dealt` numbers (`split: random`: of tiles)."""
        places = tile_places(images, size)
        if self.split != "random":
            patients = _patient_numbers(images)
            dealt = torch.nonzero(torch.isin(patients[places[:, 0]], dealt)).flatten()
        return TiledImages(images, places, dealt, size, self.colour == "grey", augmentation)

    def _deal(self) -> tuple[Tensor, Tensor, Tensor]:
        """Numbers (int64) of the patients, or with `split: random` of the tiles, to train, validate and test on."""
        images = self._open(self._training_parts)
        if self.split == "random":
            unit, count = "tiles", len(tile_places(images, self.image_size))
        else:
            unit, count = "patients", len({image.group for image in images})
        default_test = 0 if self.split == "published" else math.ceil(count / 4)
        test_size = default_test if self.test_size is None else self.test_size
        val_size = math.ceil(count / 10) if self.val_size is None else self.val_size
        if (self.train_size or 1) + val_size + test_size > count:
            raise ValueError(
                f"train_size ({self.train_size}), val_size ({val_size}) and test_size ({test_size}) share the {count} "
                f"{unit} in {self.root}: choose smaller ones."
            )
        rest, test = random_split(count, None, test_size, self.seed)
        train, val = random_split(len(rest), self.train_size, val_size, self.seed)
        return rest[train], rest[val], test

    def _open(self, parts: tuple[Part, ...]) -> list[AnnotatedImage]:
        """All images of these parts, decoded once by all cores."""
        listed = self._list()
        for part in parts:
            if part in listed and part not in self._images:
                with ThreadPoolExecutor(usable_cores()) as pool:
                    self._images[part] = list(pool.map(AnnotatedFile.read, listed[part]))
        return [image for part in parts for image in self._images.get(part, [])]

    def _list(self) -> Parts:
        if self._parts is None:
            found = self._found()
            if not found:
                raise FileNotFoundError(self._how_to_get("there is none"))
            name, home = next(iter(found.items()))
            parts = LAYOUTS[name].list_parts(home)
            if "train" not in parts:
                raise FileNotFoundError(f"{home} has test images only. Expected: {LAYOUTS[name].expected}.")
            if self.split == "published" and "test" not in parts:
                raise ValueError(f"{home} has no published test images (layout {name}): set split: patient or random.")
            self._parts = parts
        return self._parts

    def _found(self) -> dict[str, Path]:
        """The layout that is there, or was asked for, and the folder of its data set; empty: there is none.

        Raises:
            ValueError: There are several.
        """
        names = list(LAYOUTS) if self.layout == "auto" else [self.layout]
        found = {name: home for name in names if (home := LAYOUTS[name].find(Path(self.root)))}
        if len(found) > 1:
            raise ValueError(f"{self.root} holds several sets of nuclei: set layout to one of {', '.join(found)}.")
        return found

    def _how_to_get(self, reason: str) -> str:
        wanted = LAYOUTS.values() if self.layout == "auto" else [LAYOUTS[self.layout]]
        expected = "; ".join(f"{layout.title}: {layout.expected}" for layout in wanted)
        fetch = ", or download to true to fetch Naylor's TNBC images" if self.layout in ("auto", "tnbc") else ""
        return (
            f"No images of nuclei in {Path(self.root).absolute()} ({reason}). Set root or CONVSUITE_DATA to the folder "
            f"that holds them{fetch}. Expected: {expected}."
        )


def _patient_numbers(images: list[AnnotatedImage]) -> Tensor:
    """The place of each image's patient among all patients, sorted by name: int64 (N,)."""
    patients = sorted({image.group for image in images})
    return torch.tensor([patients.index(image.group) for image in images])
