"""Data sets in the layouts they are published in. Names resolve on first use, so that importing this is light."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "BaseDataModule": "datamodules.base",
    "BraTSDataModule": "datamodules.brats",
    "CatsDogsDataModule": "datamodules.cats_dogs",
    "COCODataModule": "datamodules.coco",
    "CelebADataModule": "datamodules.celeba",
    "CityscapesDataModule": "datamodules.cityscapes",
    "DigitsDataModule": "datamodules.digits",
    "FashionMNISTDataModule": "datamodules.fashion_mnist",
    "ImageNetDataModule": "datamodules.imagenet",
    "NucleiDataModule": "datamodules.nuclei",
    "PascalVOCDataModule": "datamodules.voc",
    "VolumeFolderDataModule": "datamodules.volume_folder",
    "ToyLesionDataModule": "datamodules.toy_lesions",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
