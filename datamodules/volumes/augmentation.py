"""Random changes of image patches and their masks together, in two or three dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.images.masks import IGNORE_INDEX
from datamodules.sampling import draws_for

INTERVALS = 4
"""Between the control points of an elastic deformation, along each axis of a patch."""


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

    The affine that is returned knows flips and turns, so a patch can still be put back. A deformation has no affine,
    and nothing undoes it.

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
            image, mask, affine = self._mirrored(image, mask, affine)
            if self.rotation or self.elastic:
                image, mask, affine = self._warped(image, mask, affine)
            return self._recoloured(image), mask, affine

    def _check(self, image: Tensor, mask: Tensor) -> None:
        around = [whole - inner for whole, inner in zip(image.shape[1:], mask.shape, strict=True)]
        if any(n < 0 or n % 2 for n in around):
            raise ValueError(
                f"an image {tuple(image.shape[1:])} is no mask {tuple(mask.shape)} with as much context at both ends"
            )
        if any(axis >= mask.ndim for axis in self.flips):
            raise ValueError(f"flips {list(self.flips)} name an axis that patches of {mask.ndim} axes do not have")

    def _mirrored(self, image: Tensor, mask: Tensor, affine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        draws = torch.rand(len(self.flips)).tolist()
        axes = [axis for axis, draw in zip(self.flips, draws, strict=True) if draw < 0.5]
        if not axes:
            return image, mask, affine
        reversal = torch.eye(mask.ndim + 1, dtype=affine.dtype)
        for axis in axes:
            reversal[axis, axis], reversal[axis, -1] = -1, mask.shape[axis] - 1
        return image.flip([1 + axis for axis in axes]), mask.flip(axes), affine @ reversal

    def _warped(self, image: Tensor, mask: Tensor, affine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spacing = affine[:-1, :-1].norm(dim=0)
        turn = self._turn(mask.shape, spacing)
        grid = _sampling_grid(turn, mask.shape, image.shape[1:])
        if self.elastic:
            size = torch.tensor(image.shape[1:])
            displacement = self.elastic * _spline_field(image.shape[1:])
            grid = grid + (displacement / spacing.float() * 2 / size).flip(-1)
        warped = F.grid_sample(image[None], grid[None], mode="bilinear", align_corners=False)[0]
        known = mask[None, None].float() - IGNORE_INDEX  # 0 is what comes in from beyond
        inner = _mask_grid(grid, mask.shape, image.shape[1:])
        turned = F.grid_sample(known, inner[None], mode="nearest", align_corners=False)[0, 0] + IGNORE_INDEX
        return warped, turned.to(mask.dtype), affine @ turn

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


def _spline_field(size: Sequence[int]) -> Tensor:
    """Displacements (*size, d): cubic B-splines with coefficients from N(0, 1)."""
    field = torch.randn(len(size), *[INTERVALS + 3] * len(size))
    for n in size:  # the axis in front goes to the end: after the last one all are where they were
        field = torch.tensordot(field, _spline_basis(n), dims=([1], [1]))
    return field.movedim(0, -1)


def _spline_basis(size: int) -> Tensor:
    """Cubic B-splines of control points over `INTERVALS` intervals, at the centres of voxels: (size, INTERVALS + 3)."""
    place = (torch.arange(size) + 0.5) / size * INTERVALS
    distance = (place[:, None] - torch.arange(-1, INTERVALS + 2)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)
