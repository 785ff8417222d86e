"""The Semantic Boundaries Dataset (Hariharan et al., 2011): masks for 11,355 photos of VOC 2012."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.images.image_folder import DamagedFileError

ARCHIVE = "benchmark_RELEASE"
PNG_FOLDER = "SegmentationClassAug"
PUBLISHED_AT = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"


def find_annotations(root: Path, voc: Path, given: str | None) -> Path | None:
    """The folder of SBD's masks, as the `.mat` files that are published or as PNG files; None: there is none.

    Args:
        root: The folder that holds the data sets' folders.
        voc: The folder of VOC 2012, which holds `SegmentationClassAug` where the masks were saved as PNG.
        given: Look here alone, absolute or relative to `root`: in the folder, in `cls/` and in `dataset/cls/` of it.
    """
    if given is not None:
        folder = root / Path(given).expanduser()
        places = [folder, folder / "cls", folder / "dataset" / "cls"]
    else:
        places = [voc / PNG_FOLDER, root / ARCHIVE / "dataset" / "cls", root / "SBD" / "cls", root / "sbd" / "cls"]
    return next((place for place in places if annotations_in(place)), None)


def annotations_in(folder: Path) -> dict[str, str]:
    """The file of each photo's mask directly in `folder`, by the photo's name."""
    if not folder.is_dir():
        return {}
    return {path.stem: path.name for path in sorted(folder.iterdir()) if path.suffix in (".mat", ".png")}


def read_sbd_mask(path: Path, num_classes: int) -> Tensor:
    """The classes in a `cls/*.mat` file, uint8 (H, W): its `GTcls.Segmentation`.

    Raises:
        DamagedFileError: The file cannot be read, or holds a value that is no class; the message names both.
    """
    values = _read_values(path)
    if unknown := np.setdiff1d(values, np.arange(num_classes)).tolist():
        raise DamagedFileError(
            f"The mask {path} holds the value {unknown[0]}, which is no class: the values are 0 to {num_classes - 1}. "
            "Fetch it again."
        )
    return torch.from_numpy(np.ascontiguousarray(values))


def _read_values(path: Path) -> NDArray[np.uint8]:
    from scipy.io import loadmat

    try:
        values = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # decoders raise whatever broken bytes lead them to
        raise DamagedFileError(
            f"Cannot read GTcls.Segmentation in {path} ({type(error).__name__}: {error}). Fetch the file again."
        ) from error
    if values.dtype != np.uint8 or values.ndim != 2:
        raise DamagedFileError(f"GTcls.Segmentation in {path} is no mask of 8 bits: {values.dtype}{values.shape}.")
    return values
