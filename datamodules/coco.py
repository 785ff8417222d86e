"""COCO 2017 with the classes of PASCAL VOC, to pre-train networks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from datamodules.base import Split
from datamodules.folders import cache_folder
from datamodules.layouts.coco_masks import ObjectMasks, SelectedMasks, load_object_masks
from datamodules.photos.annotated import Photos, check_present
from datamodules.photos.segmentation import PhotoSegmentationDataModule
from datamodules.voc import CLASSES

FOLDERS = ("coco", "COCO", ".")
"""Where `annotations/` is looked for, below the root."""
PUBLISHED_AT = "https://cocodataset.org/#download"
Part = Literal["train2017", "val2017"]


class COCODataModule(PhotoSegmentationDataModule):
    """Photos of COCO 2017 (Lin et al., 2014) whose pixels are VOC's 20 classes or background.

    Photos are `{train2017,val2017}/*.jpg`, objects `annotations/instances_{train,val}2017.json`, in `coco/` below
    `root`, or in `root` itself. Masks are painted from the outlines of the 20 categories that VOC has too, whatever
    their names (an airplane is an aeroplane, a couch a sofa); everything else is background. Where objects overlap the
    smaller one is seen, in place of the order in which they happen to be listed: a person on a couch is no couch. A
    crowd, one outline for many objects, is 255 where none of them is outlined by itself.

    As in Stacked U-Nets, photos with fewer than 1,000 pixels of the 20 classes are left out, of validation too; about
    90,000 are left to train on. Validation, test and prediction are those of `val2017`, because the objects in
    `test2017` are not published.

    `prepare_data` encodes the objects once (extra `coco`: pycocotools), into a file in `cache_root` that may be deleted
    at any time; masks are painted when they are drawn. Test and prediction do without the objects of `train2017`.
    `index` is the position among the photos that are not left out, in the order of the annotation file. See
    `PhotoSegmentationDataModule` for what batches hold.

    Args:
        root: The folder that holds the data set's folder; default $CONVSUITE_DATA, else ./data.
        batch_size: Training crops a batch and process; whole photos come one by one.
        num_workers: Processes that decode and augment.
        train_size: Number of training photos, a subset f(seed) in which smaller ones are contained; default: all.
        val_size: Number of validation photos taken from the training photos, f(seed), and not trained on; 0: no
            validation; default (null): `val2017`.
        seed: Seed of subsets, order and augmentation; default: that of `seed_everything`, else 0.
        predict_root: Folder of images to predict at native size, searched recursively.
        min_pixels: Leave out photos with fewer pixels of the 20 classes (crowds not counted); 0: none.
        crop_size: Height and width of a training crop.
        scale: Smallest and largest factor that training photos are scaled by; null: they are not.
        flip: Mirror half of the training crops left to right.
        rotation: Largest angle, in degrees, that training crops are turned by; 0: they are not.
        resize: The longer side, in pixels, to which every photo and mask is resized first, in training and evaluation;
            measures are then those of reduced photos. Default (null): native sizes.
        drop_last: Leave out the last batch of a training epoch where it is smaller than the others.
        cache_root: Where encoded objects are kept; default $CONVSUITE_CACHE, else ~/.cache/convsuite.

    Raises:
        ValueError: A value is out of range.
    """

    num_classes = len(CLASSES)
    class_names = CLASSES

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 22,
        num_workers: int = 2,
        train_size: int | None = None,
        val_size: int | None = None,
        seed: int | None = None,
        predict_root: str | None = None,
        min_pixels: int = 1000,
        crop_size: int = 512,
        scale: tuple[float, float] | None = (0.5, 2.0),
        flip: bool = True,
        rotation: float = 10.0,
        resize: int | None = None,
        drop_last: bool = False,
        cache_root: str | None = None,
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
        if min_pixels < 0:
            raise ValueError(f"min_pixels must be 0 (keep all photos) or more, got {min_pixels}.")
        self.min_pixels = min_pixels
        self.cache_root = cache_folder(cache_root)
        self._objects: dict[str, ObjectMasks] = {}

    def prepare_data(self) -> None:
        """Encode the objects that the Trainer's stage needs, where that is not done yet; `setup` does it without one.

        Raises:
            FileNotFoundError: The annotations are missing.
            DamagedFileError: They are not what COCO publishes.
            CacheError: What was encoded cannot be kept.
        """
        for part in self._parts():
            self._open(part)

    def photos(self, split: Split) -> Photos:
        return self._photos("train2017" if split == "train" else "val2017")

    def photos_to_predict(self) -> Photos:
        return self._photos("val2017")

    def _parts(self) -> tuple[Part, ...]:
        """What the running stage reads."""
        stage = None if self.trainer is None else self.trainer.state.fn
        if stage in ("fit", "validate"):  # training and validation set are opened together
            return ("train2017", "val2017") if self.val_size is None else ("train2017",)
        return () if stage is None or self.predicts_folder else ("val2017",)

    def _photos(self, part: Part) -> Photos:
        objects = self._open(part)
        selected = np.flatnonzero(objects.labelled >= self.min_pixels)
        if not len(selected):
            raise ValueError(
                f"No photo of {objects.path} has min_pixels ({self.min_pixels}) pixels of the 20 classes: choose fewer."
            )
        files = [f"{part}/{file}" for file in objects.files[selected].tolist()]
        check_present(self._folder, files, f"photos of {objects.path.name}")
        return Photos(self._folder, files, SelectedMasks(objects, selected))

    def _open(self, part: Part) -> ObjectMasks:
        if part not in self._objects:
            path = self._folder / "annotations" / f"instances_{part}.json"
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing. {self._how_to_get()}")
            self._objects[part] = load_object_masks(path, self.cache_root)
        return self._objects[part]

    @property
    def _folder(self) -> Path:
        """The folder that holds `annotations`."""
        for name in FOLDERS:
            if (Path(self.root) / name / "annotations").is_dir():
                return Path(self.root) / name
        raise FileNotFoundError(f"There is no COCO in {Path(self.root).absolute()}. {self._how_to_get()}")

    def _how_to_get(self) -> str:
        return (
            "Expected train2017/, val2017/ and annotations/instances_{train,val}2017.json in coco/ below root, or in "
            f"root itself: set root or CONVSUITE_DATA, and unpack the archives ({PUBLISHED_AT}) there."
        )
