"""From foreground to objects."""

from __future__ import annotations

from typing import Literal

import numpy as np

Method = Literal["components", "watershed"]


def label_objects(
    foreground: np.ndarray,
    probability: np.ndarray | None = None,
    method: Method = "components",
    min_size: int = 0,
    prominence: float = 1.0,
) -> np.ndarray:
    """Number the objects of a foreground: int32, of its shape, 0 for the background, objects from 1 without gaps.

    - "components": connected regions. Pixels are connected through their sides (4 neighbours of a pixel, 6 of a voxel),
      so that objects which meet at a corner stay apart; those which touch otherwise are one.
    - "watershed": components are split where they are narrow. Height is the Euclidean distance to the background in
      pixels, times `probability` where that is given; each maximum that stands out by `prominence` (an extended
      maximum: Soille 2003, section 6.3.4) is the marker of an object, which grows downhill until it meets its
      neighbours. A component without such a maximum is one object.

    Args:
        foreground: bool (H, W), or another number of dimensions; it must be in the memory of the CPU.
        probability: Of the foreground, in [0, 1], of the same shape; only "watershed" looks at it.
        method: How objects are told apart.
        min_size: Objects of fewer pixels are removed, after they were told apart.
        prominence: How many pixels of height a walk from a maximum to a higher one must go down. More: fewer objects.

    Raises:
        TypeError: `foreground` is not bool.
        ValueError: An unknown method, another shape of `probability`, a negative `min_size`, a `prominence` of 0 or
            less.
    """
    from skimage.measure import label
    from skimage.segmentation import relabel_sequential

    foreground = np.asarray(foreground)
    _check(foreground, probability, method, min_size, prominence)
    labels = label(foreground, connectivity=1)
    if method == "watershed":
        labels = _split(labels, probability, prominence)
    if min_size > 1:
        labels[np.bincount(labels.ravel())[labels] < min_size] = 0
        labels = relabel_sequential(labels)[0]
    return labels.astype(np.int32)


def _split(components: np.ndarray, probability: np.ndarray | None, prominence: float) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import label
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    foreground = components > 0
    height = distance_transform_edt(foreground)
    if probability is not None:
        height *= np.asarray(probability)
    # Not `h_maxima`: of two equal maxima it keeps both, whatever lies between them.
    is_marker = local_maxima(reconstruction(height - prominence, height)) & foreground
    is_marker |= ~np.isin(components, components[is_marker])  # components that are lower than that
    # A maximum is one however its pixels touch, but never one of two components.
    markers = label(np.where(is_marker, components, 0), connectivity=components.ndim)
    return watershed(-height, markers, mask=foreground)


def _check(
    foreground: np.ndarray, probability: np.ndarray | None, method: str, min_size: int, prominence: float
) -> None:
    if foreground.dtype != bool:
        raise TypeError(f"foreground must be bool, got {foreground.dtype}: compare the probability with a threshold")
    if method not in ("components", "watershed"):
        raise ValueError(f"objects are told apart by 'components' or 'watershed', got {method!r}")
    if probability is not None and np.shape(probability) != foreground.shape:
        raise ValueError(f"probability has shape {np.shape(probability)}, foreground {foreground.shape}")
    if min_size < 0:
        raise ValueError(f"min_size must be 0 (keep all objects) or more pixels, got {min_size}")
    if prominence <= 0:
        raise ValueError(f"prominence must be above 0 pixels, got {prominence}")
