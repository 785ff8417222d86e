"""Octave convolutions, plain and transposed ones, of images and of volumes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.convs.dimensions import CONVOLVE, CONVOLVE_TRANSPOSED, PerAxis, average_pool, per_axis
from models.convs.octave.pair import OctavePair, Size, cropped, half_size, low_channels, pool_down, upsample
from models.convs.variant import shape_repr

Share = float | Fraction
"""Of low channels among all; a fraction says exactly what a float may miss."""

OctaveInput = Tensor | OctavePair | tuple[Tensor | None, Tensor | None]


class _OctaveConvolution(nn.Module, ABC):
    """What both octave convolutions share: channels, parameters, and the paths between the members.

    `weight` and `bias` have the shapes of the plain convolution's, with the high channels before the low ones along
    both of the weight's channel dimensions: one tensor for all four paths.
    """

    dimensions: ClassVar[int]
    """Of space: 2 for images, 3 for volumes."""
    OUT_DIM: ClassVar[int]
    """The weight's dimension that runs over output channels; its dimension 1 is divided by the groups."""

    def __init__(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        stride: PerAxis,
        padding: PerAxis,
        dilation: PerAxis,
        groups: int,
        bias: bool,
        alpha_in: Share,
        alpha_out: Share,
    ) -> None:
        super().__init__()
        for name, alpha in (("alpha_in", alpha_in), ("alpha_out", alpha_out)):
            if not 0 <= alpha <= 1:
                raise ValueError(f"{name}, the share of low channels, must lie in [0, 1], got {alpha}")
        self.in_channels = in_channels if isinstance(in_channels, int) else sum(in_channels)
        self.out_channels = out_channels
        for name, channels in (("in_channels", self.in_channels), ("out_channels", out_channels)):
            if channels < 1 or groups < 1 or channels % groups:
                raise ValueError(f"{name} ({channels}) must be a positive multiple of groups ({groups})")
        self.kernel_size = per_axis(kernel_size, self.dimensions)
        self.stride = per_axis(stride, self.dimensions)
        self.padding = per_axis(padding, self.dimensions)
        self.dilation = per_axis(dilation, self.dimensions)
        self.groups = groups
        self.alpha_in = alpha_in
        self.alpha_out = alpha_out
        low_in, low_out = low_channels(alpha_in, in_channels), low_channels(alpha_out, out_channels)
        self.in_split = (self.in_channels - low_in, low_in)
        self.out_split = (out_channels - low_out, low_out)
        self.is_depthwise = self._check_groups()

        shape = [self.in_channels, self.in_channels]
        shape[self.OUT_DIM] = out_channels
        shape[1] //= groups
        self.weight = nn.Parameter(torch.empty(*shape, *self.kernel_size))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    @property
    def is_plain(self) -> bool:
        """Whether this is the plain convolution, from tensors to tensors."""
        return self.alpha_in == self.alpha_out == 0

    def _check_groups(self) -> bool:
        """Whether the groups are single channels, which then stay on their side."""
        splits = (*self.in_split, *self.out_split)
        if all(channels % self.groups == 0 for channels in splits):
            return False
        multiple = self.out_channels // self.in_channels
        if self.groups == self.in_channels and self.out_split == tuple(multiple * part for part in self.in_split):
            return True
        raise ValueError(
            f"groups ({self.groups}) must divide the high and low channels of the input {self.in_split} and of the "
            f"output {self.out_split}, or be depthwise between equal shares of low channels; choose another alpha "
            "or another number of channels"
        )

    def reset_parameters(self) -> None:
        """Initialise each of the four paths as the convolution that it is, as OC-GAN's code; the bias by all inputs."""
        for block in self._blocks(self.weight.detach()):
            if block.numel():
                nn.init.kaiming_uniform_(block, a=5**0.5)
        if self.bias is not None:
            fan_in = self.weight[0].numel()
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    def _blocks(self, weight: Tensor) -> Sequence[Tensor]:
        """The weights of high -> high, low -> high, high -> low, low -> low; of the first and last when depthwise."""
        if self.is_depthwise:
            return weight.split(self.out_split if self.OUT_DIM == 0 else self.in_split)
        to_high, to_low = self._by_output(weight)
        return *self._by_input(to_high), *self._by_input(to_low)

    def _by_output(self, weight: Tensor) -> Sequence[Tensor]:
        return weight.split(self._sizes(self.out_split, self.OUT_DIM), self.OUT_DIM)

    def _by_input(self, weight: Tensor) -> Sequence[Tensor]:
        return weight.split(self._sizes(self.in_split, 1 - self.OUT_DIM), 1 - self.OUT_DIM)

    def _sizes(self, split: tuple[int, int], dim: int) -> list[int]:
        return [channels // self.groups if dim == 1 else channels for channels in split]

    def _members(self, x: OctaveInput) -> OctavePair:
        if isinstance(x, Tensor):
            if self.alpha_in:
                raise TypeError(
                    f"{self} takes an OctavePair or (high, low), got a tensor {tuple(x.shape)}; with alpha_in=0 "
                    "(position 'entry') it takes tensors"
                )
            return OctavePair(x, None)
        if not self.alpha_in:
            raise TypeError(f"{self} takes a tensor, since its alpha_in is 0; got a pair")
        x = x if isinstance(x, OctavePair) else OctavePair(*x)
        if x.channels != self.in_split:
            raise ValueError(f"{self} takes {self.in_split} (high, low) channels, got {x.channels}")
        return x

    def _exchange(self, x: OctavePair, size: Size) -> Tensor | OctavePair:
        """All four paths; `size` is that of the high output."""
        biases = (None, None) if self.bias is None else self.bias.split(self.out_split)
        if self.is_depthwise:
            paths = zip(x.members, self._blocks(self.weight), biases, (size, half_size(size)), strict=True)
            high, low = (self._convolve(*path) for path in paths)
            return OctavePair(high, low)
        to_high, to_low = self._by_output(self.weight)
        if self.alpha_out == 0:
            return self._to_high(x, to_high, biases[0], size)
        return OctavePair(
            self._to_high(x, to_high, biases[0], size) if self.out_split[0] else None,
            self._to_low(x, to_low, biases[1], half_size(size)) if self.out_split[1] else None,
            size,
        )

    def _to_high(self, x: OctavePair, weight: Tensor, bias: Tensor | None, size: Size) -> Tensor:
        from_high, from_low = self._by_input(weight)
        maps = []
        if x.high is not None:
            maps.append(self._convolve(x.high, from_high, bias, size))
        if x.low is not None:
            coarse = self._convolve(x.low, from_low, None if maps else bias, half_size(size))
            maps.append(upsample(coarse, size))
        return maps[0] + maps[1] if len(maps) == 2 else maps[0]

    def _to_low(self, x: OctavePair, weight: Tensor, bias: Tensor | None, size: Size) -> Tensor:
        maps = [pool_down(x.high)] if x.high is not None else []
        maps += [x.low] if x.low is not None else []
        if len(maps) == 1:
            return self._convolve(maps[0], weight, bias, size)
        if self.groups == 1:  # one convolution of both is faster than the sum of two
            return self._convolve(torch.cat(maps, 1), weight, bias, size)
        from_high, from_low = self._by_input(weight)
        return self._convolve(maps[0], from_high, bias, size) + self._convolve(maps[1], from_low, None, size)

    @abstractmethod
    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, size: Size) -> Tensor:
        """One path, between maps of one resolution; `size` is that of the result."""

    def _path_groups(self, x: Tensor) -> int:
        return x.shape[1] if self.is_depthwise else self.groups

    def extra_repr(self) -> str:
        return f"{shape_repr(self)}, alpha_in={self.alpha_in}, alpha_out={self.alpha_out}"


class _OctaveConv(_OctaveConvolution):
    OUT_DIM = 0

    def __init__(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        *,
        alpha_in: Share = 0.5,
        alpha_out: Share = 0.5,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, alpha_in, alpha_out
        )
        needed = [d * (k - 1) / 2 for k, d in zip(self.kernel_size, self.dilation, strict=True)]
        if not self.is_plain and list(self.padding) != needed:
            raise ValueError(
                f"an octave convolution keeps its two grids aligned with padding = dilation * (kernel_size - 1) / 2 "
                f"only, here {' x '.join(f'{p:g}' for p in needed)}; got padding {padding} with kernel_size "
                f"{kernel_size} and dilation {dilation}"
            )

    def forward(self, x: OctaveInput) -> Tensor | OctavePair:
        if self.is_plain and isinstance(x, Tensor):
            return CONVOLVE[self.dimensions](
                x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
        x = self._members(x)
        if max(self.stride) > 1:
            x = _strided(x, self.stride)
        return self._exchange(x, x.full_size)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, size: Size) -> Tensor:
        return CONVOLVE[self.dimensions](x, weight, bias, 1, self.padding, self.dilation, self._path_groups(x))


class OctaveConv2d(_OctaveConv):
    """Octave convolution (Chen et al., ICCV 2019), between feature maps whose last channels have half the resolution.

    high' = W_hh * high + upsample(W_lh * low) and low' = W_ll * low + W_hl * pool(high), with 2x2 average pooling and
    nearest upsampling. The four kernels are blocks of one `weight` of `nn.Conv2d`'s shape (out, in / groups, kH, kW),
    high channels first on both sides; `bias` is added once to each member. So parameters are those of `nn.Conv2d` for
    every alpha, and with alpha_in = alpha_out = 0 the layer is `nn.Conv2d`.

    Maps an `OctavePair` or (high, low) to an `OctavePair`; where alpha_in is 0 it takes a tensor, and where alpha_out
    is 0 it gives one. The high member has the size that `nn.Conv2d` gives, the low one half of it, rounded up. A stride
    pools both members over stride x stride windows, which keeps their grids aligned, and then convolves with stride 1
    (with alpha 0 on both sides it is an ordinary stride). Groups act inside each of the four paths and must divide the
    high and low channels of both sides; a depthwise convolution keeps high -> high and low -> low only.

    Args:
        in_channels: Channels of both members together; a tuple of them for the parts of a `torch.cat`.
        alpha_in, alpha_out: Share of low channels, in [0, 1]: floor(alpha C) of C channels.

    Raises:
        ValueError: An alpha outside [0, 1]; padding other than dilation * (kernel_size - 1) / 2, unless both alphas
            are 0; groups that do not fit the channels.
    """

    dimensions = 2


class OctaveConv3d(_OctaveConv):
    """`OctaveConv2d` of volumes (N, C, D, H, W): the low members have half the resolution along all three axes.

    Arguments and errors as there, sizes as in `nn.Conv3d`; pooling averages blocks of 2x2x2.
    """

    dimensions = 3


class _OctaveConvTranspose(_OctaveConvolution):
    OUT_DIM = 1

    def __init__(
        self,
        in_channels: int | tuple[int, ...],
        out_channels: int,
        kernel_size: PerAxis,
        *,
        alpha_in: Share = 0.5,
        alpha_out: Share = 0.5,
        stride: PerAxis = 1,
        padding: PerAxis = 0,
        output_padding: PerAxis = 0,
        dilation: PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, alpha_in, alpha_out
        )
        self.output_padding = per_axis(output_padding, self.dimensions)
        axes = zip(self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        if not self.is_plain and not all(d * (k - 1) - 2 * p in (0, s - 1) for k, s, p, d in axes):
            raise ValueError(
                "a transposed octave convolution keeps its two grids aligned with padding = dilation * (kernel_size - "
                f"1) / 2, or (stride - 1) / 2 less; got padding {padding} with kernel_size {kernel_size}, stride "
                f"{stride} and dilation {dilation}"
            )

    def forward(self, x: OctaveInput) -> Tensor | OctavePair:
        if self.is_plain and isinstance(x, Tensor):
            return CONVOLVE_TRANSPOSED[self.dimensions](
                x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
            )
        x = self._members(x)
        base = self._unpadded(x.full_size)
        return self._exchange(x, tuple(n + extra for n, extra in zip(base, self.output_padding, strict=True)))

    def _unpadded(self, size: Size) -> Size:
        """The output's size without output padding."""
        axes = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in axes)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, size: Size) -> Tensor:
        missing = tuple(max(n - m, 0) for n, m in zip(size, self._unpadded(tuple(x.shape[2:])), strict=True))
        y = CONVOLVE_TRANSPOSED[self.dimensions](
            x, weight, bias, self.stride, self.padding, missing, self._path_groups(x), self.dilation
        )
        return cropped(y, size)  # the low map of an odd high one reaches beyond its border


class OctaveConvTranspose2d(_OctaveConvTranspose):
    """Transposed octave convolution: the paths of `OctaveConv2d`, each a transposed convolution.

    high' = W_hh *T high + upsample(W_lh *T low) and low' = W_ll *T low + W_hl *T pool(high), where *T enlarges each
    member by the stride. `weight` (in, out / groups, kH, kW) and `bias` have the shapes of `nn.ConvTranspose2d`'s; with
    alpha_in = alpha_out = 0 the layer is that one. The high member has the size that `nn.ConvTranspose2d` gives, the
    low one half of it, rounded up. Inputs, outputs, channels and groups as in `OctaveConv2d`.

    Raises:
        ValueError: As `OctaveConv2d`; the padding must be (dilation * (kernel_size - 1) + 1 - stride) / 2, which
            enlarges by the stride exactly, or dilation * (kernel_size - 1) / 2, unless both alphas are 0.
    """

    dimensions = 2


class OctaveConvTranspose3d(_OctaveConvTranspose):
    """`OctaveConvTranspose2d` of volumes (N, C, D, H, W), sizes as in `nn.ConvTranspose3d`."""

    dimensions = 3


def _strided(x: OctavePair, stride: tuple[int, ...]) -> OctavePair:
    """Both members averaged over windows of the stride; where the border cuts a window, over what is there."""
    high, low = (None if member is None else average_pool(member, stride) for member in x)
    return OctavePair(high, low, tuple((n + s - 1) // s for n, s in zip(x.full_size, stride, strict=True)))
