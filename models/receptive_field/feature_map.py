"""Which dimensions of a tensor run over the image, and how reshaping, sliding windows and merging change that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from models.receptive_field.axis import AxisMap, Window, blocks, repeat

AxisMaps = tuple[AxisMap, ...]
"""One map per spatial axis of the network's input, in their order."""


class SpatialPartEnds(Exception):
    """Raised by an operation behind which no feature map is left.

    Args:
        pooled: the image was reduced to something that holds for all of it; otherwise its positions were mixed in a
            way that is no sliding window.
    """

    def __init__(self, *, pooled: bool = False) -> None:
        super().__init__()
        self.pooled = pooled


@dataclass(frozen=True)
class Factor:
    """A factor of a tensor dimension: spatial axis `axis` with the input positions it reads, or anything else."""

    size: int
    axis: int = -1
    reads: AxisMap | None = None

    def through(self, window: Window, size: int) -> Factor:
        if self.reads is None:
            return Factor(size)
        return Factor(size, self.axis, self.reads.through(window))

    def union(self, other: Factor) -> Factor:
        if self.reads is None or other.reads is None:
            return self if other.reads is None else other
        if self.reads.stride != other.reads.stride:
            raise SpatialPartEnds
        return replace(self, reads=self.reads.union(other.reads))


Dim = tuple[Factor, ...]


def plain(size: int) -> Dim:
    """A dimension that does not run over the image."""
    return (Factor(size),)


def is_spatial(dim: Dim) -> bool:
    return any(factor.reads is not None for factor in dim)


def size_of(dim: Dim) -> int:
    return math.prod(factor.size for factor in dim)


@dataclass(frozen=True)
class FeatureMap:
    """The spatial structure of a tensor.

    Args:
        dims: for each dimension its factors, outermost first: one in (N, C, H, W), three in the first dimension of
            (N * H * W, C).
        before_pooling: behind an average pooling over exactly the whole map, the maps in front of it: they are the
            last ones should the spatial part end here.
    """

    dims: tuple[Dim, ...]
    before_pooling: frozenset[AxisMaps] = frozenset()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(size_of(dim) for dim in self.dims)

    @property
    def spatial_factors(self) -> list[Factor]:
        """Sorted by axis."""
        factors = [factor for dim in self.dims for factor in dim if factor.reads is not None]
        return sorted(factors, key=lambda factor: factor.axis)

    @property
    def axis_maps(self) -> AxisMaps:
        return tuple(factor.reads for factor in self.spatial_factors if factor.reads is not None)

    @property
    def last_maps(self) -> frozenset[AxisMaps]:
        """What counts as the last maps when the spatial part ends here."""
        return self.before_pooling or frozenset({self.axis_maps})

    def with_dims(self, dims: Iterable[Dim]) -> FeatureMap:
        return replace(self, dims=tuple(dims))

    def with_dim(self, index: int, dim: Dim) -> FeatureMap:
        index %= len(self.dims)
        return self.with_dims((*self.dims[:index], dim, *self.dims[index + 1 :]))

    def without_dim(self, index: int) -> FeatureMap:
        index %= len(self.dims)
        return self.with_dims((*self.dims[:index], *self.dims[index + 1 :]))

    def slide(self, windows: Sequence[Window], sizes: Sequence[int]) -> FeatureMap:
        """The map after `windows` ran over the last dimensions, which now have `sizes`."""
        changes = zip(self.dims[-len(windows) :], windows, sizes, strict=True)
        return FeatureMap((*self.dims[: -len(windows)], *(_slide(*change) for change in changes)))

    def move(self, index: int, window: Window, size: int) -> FeatureMap:
        """The map after `window` ran over one dimension, whichever kind it is."""
        return FeatureMap(self.with_dim(index, _slide(self.dims[index], window, size)).dims)

    def regroup(self, shape: Sequence[int]) -> FeatureMap:
        """The map after a row-major reshape (`view`, `flatten`, `squeeze` ...) to `shape`."""
        if tuple(shape) == self.shape:
            return self
        factors = [factor for dim in self.dims for factor in dim]
        dims = []
        for position, size in enumerate(shape):
            dim = _take(factors, size)
            is_last = position + 1 == len(shape)
            # A map of one pixel leaves axes of size 1: each stays a dimension of its own where the shape has room.
            while factors and factors[0].size == 1 and (is_last or shape[position + 1] != 1):
                dim.append(factors.pop(0))
            dims.append(_fold(dim))
        return self.with_dims(dims)


def merge(maps: Sequence[FeatureMap], shape: Sequence[int]) -> FeatureMap:
    """The map of a tensor of `shape` computed element by element from tensors with `maps`, which broadcast to it."""
    padded = [m.with_dims([*[plain(1)] * (len(shape) - len(m.dims)), *m.dims]) for m in maps]
    # One pixel spread over an image is the same everywhere, like a pooled value.
    spread = [m for m in padded if not _is_spread(m, shape)]
    if not spread:
        raise SpatialPartEnds(pooled=True)
    dims = [_merge_dims([m.dims[index] for m in spread], size) for index, size in enumerate(shape)]
    is_pooled = all(m.before_pooling for m in spread)
    return FeatureMap(tuple(dims), frozenset().union(*(m.before_pooling for m in spread if is_pooled)))


def _is_spread(feature_map: FeatureMap, shape: Sequence[int]) -> bool:
    return any(is_spatial(dim) and size_of(dim) != size for dim, size in zip(feature_map.dims, shape, strict=True))


def _merge_dims(dims: Sequence[Dim], size: int) -> Dim:
    if not any(is_spatial(dim) for dim in dims):
        return plain(size)
    first, *others = dims
    for other in others:
        if [(factor.size, factor.axis) for factor in first] != [(factor.size, factor.axis) for factor in other]:
            raise SpatialPartEnds
        first = tuple(one.union(two) for one, two in zip(first, other, strict=True))
    return first


def _slide(dim: Dim, window: Window, size: int) -> Dim:
    if not is_spatial(dim):
        return plain(size)
    if window.is_identity and size == size_of(dim):
        return dim
    factors = [factor for factor in dim if factor.size > 1 or factor.reads is not None]
    if len(factors) > 1:
        raise SpatialPartEnds
    return (factors[0].through(window, size),)


def _take(factors: list[Factor], size: int) -> list[Factor]:
    """Removes the factors that make up `size` from the front of the list, splitting the last one where needed."""
    if size == 1:
        return [factors.pop(0)] if factors and factors[0].size == 1 else [Factor(1)]
    taken = []
    while size > 1:
        factor = factors.pop(0)
        if size % factor.size == 0:
            taken.append(factor)
            size //= factor.size
        elif factor.size % size == 0:
            inner = factor.size // size
            taken.append(factor.through(blocks(inner), size))
            factors.insert(0, Factor(inner))
            size = 1
        elif factor.reads is None and factors and factors[0].reads is None:
            factors[0] = Factor(factor.size * factors[0].size)
        else:
            raise SpatialPartEnds
    return taken


def _fold(dim: Sequence[Factor]) -> Dim:
    """A spatial factor with something else inside it is a finer axis: the rows of a hand-made pixel shuffle."""
    folded: list[Factor] = []
    for factor in dim:
        if folded and folded[-1].reads is not None and factor.reads is None and factor.size > 1:
            folded[-1] = folded[-1].through(repeat(factor.size), folded[-1].size * factor.size)
        else:
            folded.append(factor)
    return tuple(folded)
