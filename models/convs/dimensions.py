"""What torch calls by one name for images and by another for volumes, by the number of spatial dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

PerAxis = int | tuple[int, ...]
"""One number for every spatial axis, or one for each, in their order in a tensor."""

PlainConv = nn.Conv2d | nn.Conv3d

CONVS: dict[int, Callable[..., PlainConv]] = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_CONVS: dict[int, Callable[..., nn.Module]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS: dict[int, Callable[..., nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS: dict[int, Callable[..., nn.Module]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}

CONVOLVE: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}
CONVOLVE_TRANSPOSED: dict[int, Callable[..., Tensor]] = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def check_dimensions(dimensions: int) -> None:
    """Raises `ValueError` unless there are layers of that many spatial dimensions."""
    if dimensions not in CONVS:
        raise ValueError(f"dimensions must be 2, for images, or 3, for volumes, got {dimensions!r}")


def per_axis(value: PerAxis | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """An int as often as there are dimensions; a sequence of one number for each of them as a tuple.

    Raises:
        ValueError: Anything else, such as nn.Conv2d's padding="same".
    """
    if isinstance(value, int):
        return (value,) * dimensions
    if isinstance(value, str) or len(value) != dimensions:
        count = {2: "two", 3: "three"}[dimensions]
        raise ValueError(f"expected a whole number or {count} of them, got {value!r}")
    return tuple(int(number) for number in value)


def average_pool(x: Tensor, window: tuple[int, ...]) -> Tensor:
    """Average over blocks of `window` values, (N, C, *spatial axes) to (N, C, *spatial axes / window, rounded up).

    Blocks that a border cuts are the average of what is there. Volumes are pooled as planes and then along the depth:
    torch's pooling of volumes knows no bfloat16 on CPUs, is not deterministic on GPUs, loses channels_last_3d, and
    refuses windows that exceed the map.
    """
    *depth, height, width = window
    if not depth:
        return F.avg_pool2d(x, window, ceil_mode=True, count_include_pad=False)
    # Planes are joined to the dimension that they lie next to in memory, so that none is copied.
    across_channels = x.is_contiguous()
    planes = x.flatten(1, 2) if across_channels else x.transpose(1, 2).flatten(0, 1)
    planes = F.avg_pool2d(planes, (height, width), ceil_mode=True, count_include_pad=False)
    if across_channels:
        pooled = planes.unflatten(1, x.shape[1:3])
    else:
        pooled = planes.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
    columns = F.avg_pool2d(pooled.flatten(3), (depth[0], 1), ceil_mode=True, count_include_pad=False)
    return columns.unflatten(3, pooled.shape[3:])
