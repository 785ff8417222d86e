"""Random changes of image patches and their masks together, in two or three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.images.masks import IGNORE_INDEX
from datamodules.sampling import draws_for
from datamodules.volumes.geometry import interpolated

INTERVALS = 4
"""Between the control points of an elastic deformation, along each axis of a patch."""

_PRECISION = 1e-2  # voxels: a place whose inverse lies no further beyond the patch than this still has one
_STEPS = 30  # of Newton's method, which needs four or five where a deformation does not almost fold
_SLAB = 2**12  # voxels that are inverted at once


class _Movement(NamedTuple):
    """What is drawn for the geometry of a patch, in the order of its use.

    Attributes:
        mirrored: Axes that are reversed.
        turn: Indices of the turned patch to indices of the mirrored one, float64 (d + 1, d + 1); None: neither turned
            nor deformed.
        coefficients: Of the splines, float32 (d, *[INTERVALS + 3] * d) from N(0, 1); None: not deformed.
    """

    mirrored: list[int]
    turn: Tensor | None
    coefficients: Tensor | None


@dataclass(frozen=True)
class VolumeAugmentation:
    """Mirrors, turns and deforms a patch and its mask, and changes the patch's grey values: f(seed, epoch, index).

    In this order:

    1. each axis in `flips` is reversed with probability 1/2;
    2. the patch is turned about its centre by exp(A), A antisymmetric with entries uniform in [-rotation, rotation]: an
       angle of images, a rotation vector of volumes. It is a rotation of the world: voxels need not be cubes;
    3. it is deformed by displacements that are cubic B-splines over `INTERVALS` intervals along each axis, whose
       coefficients have the standard deviation `elastic` (a free-form deformation, Rueckert et al. 1999; it folds
       nowhere while coefficients are below 0.4 intervals);
    4. each channel is multiplied by a factor uniform in 1 +- intensity, and a value uniform in +- intensity is added;
    5. noise of standard deviation `noise` is added to each voxel.

    Turning and deforming interpolate once: images linearly, masks by the nearest value. What lies beyond the image is 0
    then, what lies beyond the mask 255, which is ignored. Flips alone are exact.

    The affine that is returned knows flips and turns, which is all that `geometry.put_back` needs. A deformation is not
    in the affine: `undeformed` takes it back first.

    Attributes:
        seed: Seed of all draws.
        flips: Spatial axes that may be mirrored, 0 for the first.
        rotation: Degrees.
        elastic: Millimetres, or whatever the affine's unit is.
        intensity: Of normalised images: a share, and a number of standard deviations.
        noise: In standard deviations of normalised images.

    Raises:
        ValueError: A value is out of range; when called, an image that is not the mask with as many voxels of context
            at both ends of each axis, or a flip along an axis that there is not.
    """

    seed: int
    flips: Sequence[int] = ()
    rotation: float = 0.0
    elastic: float = 0.0
    intensity: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        if len(set(self.flips)) < len(self.flips) or not set(self.flips) <= {0, 1, 2}:
            raise ValueError(f"flips must be different axes, of 0, 1 and 2; got {list(self.flips)}")
        if not 0 <= self.rotation <= 180:
            raise ValueError(f"rotation must be 0 (off) to 180 degrees, got {self.rotation}")
        if not 0 <= self.intensity < 1:
            raise ValueError(f"intensity must be at least 0 (off) and below 1, got {self.intensity}")
        for name, value in (("elastic", self.elastic), ("noise", self.noise)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be 0 (off) or more, got {value}")

    def __call__(
        self, image: Tensor, mask: Tensor, affine: Tensor, epoch: int, index: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The augmented image, mask and affine, of the shapes and types that are given.

        Args:
            image: float32 (C, *(size + 2 * context)), normalised.
            mask: uint8 (*size), the middle of the image.
            affine: Of the mask, float64 (d + 1, d + 1), voxel index to mm.
            epoch: Of the draw.
            index: Of the draw.
        """
        self._check(image, mask)
        with draws_for("augment", self.seed, epoch, index):
            movement = self._movement(mask.shape, affine)
            image, mask = _mirrored(image, mask, movement.mirrored)
            if movement.turn is not None:
                image, mask = self._warped(image, mask, _spacing(affine), movement.turn, movement.coefficients)
            return self._recoloured(image), mask, _moved(affine, mask.shape, movement)

    def undeformed(
        self, values: Tensor, image_size: Sequence[int], affine: Tensor, epoch: int, index: int
    ) -> tuple[Tensor, Tensor]:
        """What a network predicted on an augmented patch, with the deformation undone; and its affine.

        Flips and turns stay: values are on the grid that the patch was augmented to, and the affine is the one that the
        call returned, so that `geometry.put_back` (or `to_native`) brings them into any grid of the world. The draws of
        (seed, epoch, index) are made anew; without `elastic`, the values are returned as they are.

        The place that belongs to each voxel is exact to a hundredth of a voxel, by Newton's method on the splines
        themselves. Values there are interpolated as `put_back` does it. Places that the deformation moved out of the
        patch are background: class 0, or probability 1 of it. (Undeforming a mask of ones says which those are.)

        Args:
            values: Classes (*size) of an integer type, or probabilities (K, *size).
            image_size: Of the image that the call was given, with its context.
            affine: That the call was given, float64 (d + 1, d + 1).
            epoch: Of the draw.
            index: Of the draw.

        Raises:
            ValueError: The deformation folds within the patch, so that it has no inverse; or the values have another
                number of axes than the affine.
        """
        axes = len(affine) - 1
        if values.ndim != axes + values.is_floating_point():
            raise ValueError(
                f"values of shape {tuple(values.shape)} and {values.dtype} do not fit an affine of {axes} axes: give "
                f"classes (*size) of an integer type, or probabilities (K, *size)"
            )
        size = values.shape[-axes:]
        with draws_for("augment", self.seed, epoch, index):
            movement = self._movement(size, affine)
        moved = _moved(affine, size, movement)
        if movement.turn is None or movement.coefficients is None:
            return values, moved
        # Voxel x holds what was at turn x + u(x) = turn (x + v(x)), and ought to hold what was at turn x.
        to_voxels = self.elastic * torch.linalg.inv(movement.turn[:-1, :-1]) / _spacing(affine)
        coefficients = torch.tensordot(to_voxels, movement.coefficients.to(to_voxels.dtype), dims=1)
        places, is_found = _inverse(coefficients, size, image_size)
        undeformed = torch.zeros_like(values)
        if values.is_floating_point():
            undeformed[0] = 1
        undeformed[..., is_found] = interpolated(values, places[is_found])
        return undeformed, moved

    def _check(self, image: Tensor, mask: Tensor) -> None:
        around = [whole - inner for whole, inner in zip(image.shape[1:], mask.shape, strict=True)]
        if any(n < 0 or n % 2 for n in around):
            raise ValueError(
                f"an image {tuple(image.shape[1:])} is no mask {tuple(mask.shape)} with as much context at both ends"
            )
        if any(axis >= mask.ndim for axis in self.flips):
            raise ValueError(f"flips {list(self.flips)} name an axis that patches of {mask.ndim} axes do not have")

    def _movement(self, size: Sequence[int], affine: Tensor) -> _Movement:
        draws = torch.rand(len(self.flips)).tolist()
        mirrored = [axis for axis, draw in zip(self.flips, draws, strict=True) if draw < 0.5]
        turn = self._turn(size, _spacing(affine)) if self.rotation or self.elastic else None
        coefficients = torch.randn(len(size), *[INTERVALS + 3] * len(size)) if self.elastic else None
        return _Movement(mirrored, turn, coefficients)

    def _warped(
        self, image: Tensor, mask: Tensor, spacing: Tensor, turn: Tensor, coefficients: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        grid = _sampling_grid(turn, mask.shape, image.shape[1:])
        if coefficients is not None:
            size = torch.tensor(image.shape[1:])
            displacement = self.elastic * _spline_field(coefficients, image.shape[1:])
            grid = grid + (displacement / spacing.float() * 2 / size).flip(-1)
        warped = F.grid_sample(image[None], grid[None], mode="bilinear", align_corners=False)[0]
        known = mask[None, None].float() - IGNORE_INDEX  # 0 is what comes in from beyond
        inner = _mask_grid(grid, mask.shape, image.shape[1:])
        turned = F.grid_sample(known, inner[None], mode="nearest", align_corners=False)[0, 0] + IGNORE_INDEX
        return warped, turned.to(mask.dtype)

    def _turn(self, size: Sequence[int], spacing: Tensor) -> Tensor:
        """Indices of the turned mask to indices of the mask, (d + 1, d + 1)."""
        axes = len(size)
        angles = torch.zeros(axes, axes, dtype=spacing.dtype)
        upper = torch.triu_indices(axes, axes, offset=1)
        angles[*upper] = math.radians(self.rotation) * (2 * torch.rand(upper.shape[1], dtype=spacing.dtype) - 1)
        rotation = torch.linalg.matrix_exp(angles - angles.T) * spacing / spacing[:, None]
        centre = (torch.tensor(size, dtype=spacing.dtype) - 1) / 2
        turn = torch.eye(axes + 1, dtype=spacing.dtype)
        turn[:-1, :-1], turn[:-1, -1] = rotation, centre - rotation @ centre
        return turn

    def _recoloured(self, image: Tensor) -> Tensor:
        if self.intensity:
            gain, shift = self.intensity * (2 * torch.rand(2, len(image), *[1] * (image.ndim - 1)) - 1)
            image = image * (1 + gain) + shift
        return image + self.noise * torch.randn(image.shape) if self.noise else image


def _spacing(affine: Tensor) -> Tensor:
    return affine[:-1, :-1].norm(dim=0)


def _mirrored(image: Tensor, mask: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    return (image.flip([1 + axis for axis in axes]), mask.flip(axes)) if axes else (image, mask)


def _moved(affine: Tensor, size: Sequence[int], movement: _Movement) -> Tensor:
    """The affine of a patch (*size) once it is mirrored and turned."""
    if movement.mirrored:
        reversal = torch.eye(len(affine), dtype=affine.dtype)
        for axis in movement.mirrored:
            reversal[axis, axis], reversal[axis, -1] = -1, size[axis] - 1
        affine = affine @ reversal
    return affine if movement.turn is None else affine @ movement.turn


def _sampling_grid(turn: Tensor, size: Sequence[int], image_size: Sequence[int]) -> Tensor:
    """Where each voxel of an image (*image_size) comes from, in torch's normalised coordinates (*image_size, d).

    `turn` is of indices of the mask (*size), which has the same middle as the image. Normalised coordinates are those
    of voxels' borders (-1 and 1 are the image's), with the last axis first.
    """
    axes = len(size)
    to_unit = torch.diag(2 / torch.tensor([*image_size, 2], dtype=turn.dtype))  # of indices from the middle
    middle = torch.eye(axes + 1, dtype=turn.dtype)
    middle[:-1, -1] = (torch.tensor(size, dtype=turn.dtype) - 1) / 2
    normalised = to_unit @ torch.linalg.solve(middle, turn @ middle) @ torch.linalg.inv(to_unit)
    theta = torch.cat([normalised[:-1, :-1].flip(0, 1), normalised[:-1, -1:].flip(0)], 1).float()
    return F.affine_grid(theta[None], [1, 1, *image_size], align_corners=False)[0]


def _mask_grid(grid: Tensor, size: Sequence[int], image_size: Sequence[int]) -> Tensor:
    """The part of an image's sampling grid that is the mask's, in the mask's own normalised coordinates."""
    regions = [slice((n - m) // 2, (n + m) // 2) for n, m in zip(image_size, size, strict=True)]
    return grid[*regions] * (torch.tensor(image_size) / torch.tensor(size)).flip(-1)


def _spline_field(coefficients: Tensor, size: Sequence[int]) -> Tensor:
    """Displacements (*size, d) by cubic B-splines with coefficients (d, *[INTERVALS + 3] * d), at centres of voxels."""
    field = coefficients
    for n in size:  # the axis in front goes to the end: after the last one all are where they were
        basis = _spline_basis((torch.arange(n) + 0.5) / n * INTERVALS)
        field = torch.tensordot(field, basis, dims=([1], [1]))
    return field.movedim(0, -1)


def _spline_basis(place: Tensor) -> Tensor:
    """Cubic B-splines of all control points at places in intervals from the image's border: (..., INTERVALS + 3)."""
    distance = (place[..., None] - torch.arange(-1, INTERVALS + 2)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def _spline_slopes(place: Tensor) -> Tensor:
    """The derivatives of `_spline_basis`."""
    offset = place[..., None] - torch.arange(-1, INTERVALS + 2)
    distance = offset.abs()
    near = 3 / 2 * distance**2 - 2 * distance
    far = -((2 - distance).clamp(min=0) ** 2) / 2
    return offset.sign() * torch.where(distance < 1, near, far)


def _inverse(coefficients: Tensor, size: Sequence[int], image_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Solves x + v(x) = x' for each voxel x' of a patch (*size) in the middle of an image (*image_size).

    Args:
        coefficients: Of the displacement v, in voxels, float64 (d, *[INTERVALS + 3] * d).
        size: Of the patch.
        image_size: Of the image, over which the control points are spread.

    Returns:
        Places x (*size, d), and which of the voxels have one within the patch, bool (*size).

    Raises:
        ValueError: The deformation folds: the determinant of its Jacobian is not positive at each voxel.
    """
    extents = torch.tensor(size).to(coefficients), torch.tensor(image_size).to(coefficients)
    grid = torch.meshgrid(*(torch.arange(n, dtype=coefficients.dtype) for n in size), indexing="ij")
    slabs = torch.stack(grid, -1).flatten(0, -2).split(_SLAB)
    found = [_newton(coefficients, voxels, *extents) for voxels in slabs]
    places, is_found = (torch.cat(parts) for parts in zip(*found, strict=True))
    return places.view(*size, -1), is_found.view(*size)


def _newton(coefficients: Tensor, voxels: Tensor, size: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor]:
    """`_inverse` of voxels (N, d). No step leaves the patch: beyond it, nothing is known of folds.

    Voxels without a place in it are held at its border, whence each further step would lead out.
    """
    places = voxels
    for step in range(_STEPS):
        displacement, jacobian = _deformation(coefficients, places, size, image_size)
        if step == 0 and (torch.linalg.det(jacobian) <= 0).any():
            raise ValueError(
                f"a deformation of a patch {tuple(size.int().tolist())} folds, so that it has no inverse: give a lower "
                f"elastic"
            )
        wanted = places - torch.linalg.solve(jacobian, places + displacement - voxels)
        is_found = ((wanted - places).abs() < _PRECISION).all(-1)
        reached = wanted.clamp(torch.full_like(size, -0.5), size - 0.5)
        if (reached - places).abs().max() < _PRECISION**2:
            break
        places = reached
    return wanted, is_found


def _deformation(coefficients: Tensor, places: Tensor, size: Tensor, image_size: Tensor) -> tuple[Tensor, Tensor]:
    """The displacement v of `_inverse` at places (N, d), as (N, d), and the Jacobian of x + v(x), as (N, d, d)."""
    scale = INTERVALS / image_size
    intervals = (places + (image_size - size + 1) / 2) * scale
    basis, slopes = _spline_basis(intervals), _spline_slopes(intervals) * scale[:, None]
    displacement, *derivatives = (
        torch.tensordot(each[:, -1], coefficients, dims=([1], [-1])) for each in (basis, slopes)
    )
    for axis in range(len(size) - 2, -1, -1):
        derivatives = [
            _weighted(displacement, slopes[:, axis]),
            *(_weighted(part, basis[:, axis]) for part in derivatives),
        ]
        displacement = _weighted(displacement, basis[:, axis])
    return displacement, torch.stack(derivatives, -1) + torch.eye(len(size), dtype=places.dtype)


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Sums over the last axis of values (N, ..., n), with weights (N, n)."""
    return torch.einsum("n...i,ni->n...", values, weights)
