"""Where voxels are in the world: into the space a network works in, and back to the subject's own voxels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from monai.transforms import Compose
    from nibabel.nifti1 import Nifti1Header

_SHIFT = 1e-2  # voxels: affines are float32 in files, and a grid that fits to a hundredth of a voxel is the same grid
_SLAB = 2**20  # voxels that are resampled at once
_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


def native_transforms(
    keys: Sequence[str],
    mask_key: str | None = None,
    orientation: str | None = "RAS",
    spacing: Sequence[float] | None = None,
    crop_foreground: bool = False,
) -> Compose:
    """From a subject's NIfTI files to the space that a network works in, as one MONAI `Compose`.

    Maps {key: path} to {"image": (C, X, Y, Z), mask_key: (1, X, Y, Z)}, float32 `MetaTensor`s that carry their affines,
    channels in the order of `keys`. Files must have one shape and one affine.

    Each step but reading is invertible, and each one's inverse is in the affine: `to_native` needs that and nothing
    else, for any chain of flips, crops, paddings, exchanges of axes, rotations and resamplings, these here or others.
    (An elastic deformation is not in the affine. `VolumeAugmentation.undeformed` takes it back first.)

    Args:
        keys: Keys of the images, one a channel.
        mask_key: Key of the mask, which takes nearest values where images are interpolated linearly.
        orientation: Axis codes of the result, such as "RAS" (indices rise to the right, the front, the top); None: as
            the files have it.
        spacing: Distance of voxels in mm along the axes of the result; None: as the files have it. The first voxel
            keeps its place.
        crop_foreground: Crop to the box outside of which all images are 0.
    """
    from monai import transforms

    image = "image"
    loaded = [*keys] if mask_key is None else [*keys, mask_key]
    moved = [image] if mask_key is None else [image, mask_key]
    steps: list[transforms.Transform] = [
        transforms.LoadImaged(loaded, reader="NibabelReader", image_only=True),
        transforms.EnsureChannelFirstd(loaded, channel_dim="no_channel"),
        transforms.ConcatItemsd(list(keys), name=image),
        transforms.SelectItemsd(moved),
    ]
    if orientation is not None:
        steps.append(transforms.Orientationd(moved, axcodes=orientation, labels=_LABELS))
    if spacing is not None:
        # Corners are aligned: the other convention of MONAI moves nothing but what lies beyond the border.
        modes = ["bilinear", "nearest"][: len(moved)]
        steps.append(transforms.Spacingd(moved, pixdim=list(spacing), mode=modes, align_corners=True))
    if crop_foreground:
        steps.append(transforms.CropForegroundd(moved, source_key=image, select_fn=_is_foreground, allow_smaller=True))
    return transforms.Compose(steps)


def _is_foreground(image: Tensor) -> Tensor:
    return image != 0


@dataclass(frozen=True)
class NativeSpace:
    """A subject's own voxel grid.

    Attributes:
        size: Voxels along each axis, as the file has them.
        affine: float64 (d + 1, d + 1), voxel index to mm, of voxel centres.
        header: Of the file, for files that are to lie over it.
    """

    size: tuple[int, ...]
    affine: Tensor
    header: Nifti1Header | None = None

    @classmethod
    def of(cls, path: Path) -> NativeSpace:
        """That of a NIfTI file, from its header alone."""
        import nibabel

        image: Any = nibabel.load(path)
        return cls(tuple(image.shape), torch.from_numpy(np.array(image.affine, np.float64)), image.header)


def to_native(
    prediction: Tensor, affine: Tensor, native: NativeSpace
) -> tuple[np.ndarray, np.ndarray, Nifti1Header | None]:
    """A prediction in working space as (classes uint8 `native.size`, affine, header) of the subject's own voxels.

    Exact voxel for voxel where the grids agree but for axes and whole voxels (crop, flip, pad, orientation, quarter
    turns). Otherwise each native voxel gets the class that is predicted at its centre. Voxels that the working space
    leaves out are class 0.

    Args:
        prediction: Classes (*size) of an integer type, or probabilities (K, *size). Both are interpolated linearly
            where voxels are resampled, and the largest wins (see `put_back`). Probabilities say where between two
            voxels a surface lies: on spheres, with voxels up to twice as long, they lose a third or less of what
            classes lose.
        affine: Of the prediction, float64 (d + 1, d + 1).
        native: Where to.

    Raises:
        ValueError: The prediction has another number of axes than the native space.
    """
    prediction = prediction.detach().cpu()
    axes = len(native.size)
    if prediction.ndim != axes + prediction.is_floating_point():
        raise ValueError(
            f"a prediction of shape {tuple(prediction.shape)} and {prediction.dtype} does not fit a subject of "
            f"{axes} axes: give classes (*size) of an integer type, or probabilities (K, *size)"
        )
    prediction = prediction.float() if prediction.is_floating_point() else prediction
    placed = prediction.new_zeros(*prediction.shape[:-axes], *native.size)
    if prediction.is_floating_point():
        placed[0] = 1  # certainly background, where nothing is predicted
    put_back(prediction, affine, placed, native.affine)
    classes = placed.argmax(0) if prediction.is_floating_point() else placed
    return classes.to(torch.uint8).numpy(), native.affine.numpy().copy(), native.header


def put_back(values: Tensor, affine: Tensor, target: Tensor, target_affine: Tensor) -> Tensor:
    """Write `values` where they belong in the world into `target`, in place; which is returned.

    Where both grids agree but for the order and direction of axes and whole voxels, values are copied, not computed.
    Otherwise each voxel of the target whose centre lies in a voxel of `values` gets a value, from linear interpolation
    between voxel centres (at the border, the border's value): of floating point numbers the interpolated one; of
    classes the one whose indicator is largest, which keeps surfaces smoother than the nearest class. Other voxels stay
    as they are, so that patches can be put back one after the other.

    Args:
        values: (..., *size) of floating point numbers, or classes (*size) of an integer type; d spatial axes.
        affine: Of `values`, float64 (d + 1, d + 1), voxel index to mm.
        target: (..., *target_size) of the same leading axes and type.
        target_affine: Of `target`.
    """
    axes = len(affine) - 1
    to_values = torch.linalg.solve(affine.double(), target_affine.double())  # indices of the target to those of values
    turn = to_values[:-1, :-1].round()
    shift = to_values[:-1, -1].round()
    drift = (to_values[:-1] - torch.cat([turn, shift[:, None]], 1)).abs()
    is_signed_permutation = torch.equal(turn.abs() @ turn.abs().T, torch.eye(axes, dtype=turn.dtype))
    reach = drift @ torch.tensor([*target.shape[-axes:], 1], dtype=drift.dtype)
    if is_signed_permutation and reach.max() < _SHIFT:
        _copy(values, turn.int().tolist(), shift.int().tolist(), target)
    else:
        _resample(values, to_values, target)
    return target


def _copy(values: Tensor, turn: list[list[int]], shift: list[int], target: Tensor) -> None:
    """Index i of the target is index `turn @ i + shift` of the values, where they have one."""
    axes = len(shift)
    leading = values.ndim - axes
    order = [next(i for i in range(axes) if turn[i][j]) for j in range(axes)]  # axis of values for each of the target
    values = values.permute(*range(leading), *(leading + i for i in order))
    taken = given = (slice(None),) * leading
    for j, i in enumerate(order):
        length, first = values.shape[leading + j], shift[i]
        if turn[i][j] < 0:
            values, first = values.flip(leading + j), length - 1 - first
        start, stop = max(0, -first), min(target.shape[leading + j], length - first)
        stop = max(start, stop)
        given, taken = (*given, slice(start, stop)), (*taken, slice(start + first, stop + first))
    target[given] = values[taken]


def _resample(values: Tensor, to_values: Tensor, target: Tensor) -> None:
    axes = len(to_values) - 1
    size = torch.tensor(values.shape[-axes:], dtype=to_values.dtype)
    for region in _slabs(_box(size, to_values, target.shape[-axes:])):
        grid = torch.meshgrid(*(torch.arange(s.start, s.stop, dtype=to_values.dtype) for s in region), indexing="ij")
        place = torch.stack(grid, -1) @ to_values[:-1, :-1].T + to_values[:-1, -1]
        is_inside = ((place >= -0.5 - _SHIFT) & (place <= size - 0.5 + _SHIFT)).all(-1)
        part = target[(slice(None),) * (target.ndim - axes) + tuple(region)]
        part[..., is_inside] = interpolated(values, place[is_inside])


def _box(size: Tensor, to_values: Tensor, target_size: Sequence[int]) -> list[slice]:
    """The voxels of the target among which are all whose centres lie in voxels of the values."""
    corners = torch.cartesian_prod(*(torch.stack([-torch.ones_like(n), n]) for n in size))
    homogeneous = torch.cat([corners.view(-1, len(size)), corners.new_ones(2 ** len(size), 1)], 1)
    places = torch.linalg.solve(to_values, homogeneous.T)[:-1]
    starts, stops = places.amin(1).floor().int().tolist(), places.amax(1).ceil().int().tolist()
    return [
        slice(min(max(start, 0), n), min(max(stop + 1, 0), n))
        for start, stop, n in zip(starts, stops, target_size, strict=True)
    ]


def _slabs(region: list[slice]) -> Iterator[list[slice]]:
    first, *others = region
    thickness = max(1, _SLAB // max(1, math.prod(s.stop - s.start for s in others)))
    for start in range(first.start, first.stop, thickness):
        yield [slice(start, min(start + thickness, first.stop)), *others]


def interpolated(values: Tensor, places: Tensor) -> Tensor:
    """Values at places between voxel centres, linearly; beyond the outermost centres, those of the border.

    Args:
        values: (..., *size) of floating point numbers, which gives numbers (..., N); or classes (*size) of an integer
            type, which gives at each place, (N,), the class whose indicator is largest when all are interpolated.
        places: Indices of voxels, float64 (N, d).
    """
    return _linear(values, places) if values.is_floating_point() else _majority(values, places)


def _majority(values: Tensor, places: Tensor) -> Tensor:
    """The class of which most is at each place, when all are interpolated linearly; of equals the lowest."""
    classes = values.unique()
    most, winner = torch.full((len(places),), -1.0), values.new_zeros(len(places))
    for value in classes:
        share = _linear((values == value).float(), places)
        winner = torch.where(share > most, value, winner)
        most = torch.maximum(most, share)
    return winner


def _linear(values: Tensor, places: Tensor) -> Tensor:
    axes = places.shape[1]
    size = torch.tensor(values.shape[-axes:])
    grid = ((2 * places + 1) / size - 1).flip(-1).to(values.dtype)  # of voxels' borders, last axis first
    channels = values.reshape(1, -1, *values.shape[-axes:])
    grid = grid.view(1, *(1,) * (axes - 1), *grid.shape)
    found = F.grid_sample(channels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found.view(*values.shape[:-axes], len(places))
