"""Octave layers for a network that was built for tensors: a trial pass finds out which of its layers meet pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from models.convs.dimensions import PlainConv
from models.convs.octave.layers import OctaveConv2d, OctaveConv3d
from models.convs.octave.norm import MemberNorm, OctaveNorm
from models.convs.octave.pair import OctavePair, Split, low_channels
from models.convs.variant import Variant, dimensions_of, geometry_of
from models.trial import example_input, try_out


def put_octaves_into(network: nn.Module, convs: Mapping[str, PlainConv], variant: Variant, alpha: float) -> None:
    """Replaces these convolutions of `network`, by name, and the norms that meet their output, in place.

    Where they end, a tensor becomes a pair (its last channels lose their resolution by average pooling) in front
    of an octave convolution, and a pair becomes a tensor (nearest upsampling and concatenation) in front of a plain
    one. The convolution that takes the image takes a tensor; where the network would return a pair, the last octave
    convolution gives a tensor. Convolutions whose output is a single pixel stay plain: dense layers in disguise, such
    as the gates of squeeze-and-excitation.

    Of timm's families, VGG, ResNet with its kin (ResNeXt, SE-ResNet, Wide ResNet, ResNet-D, RegNet), DenseNet,
    DarkNet, Xception, RepVGG, MobileNet v1 to v3, MNASNet and EfficientNet are known to work. Those do not that
    normalise over channels or attend (ConvNeXt, EdgeNeXt, LeViT), split channels inside a block (Res2Net, GhostNet,
    MixNet, CSPNet) or shrink maps by unpadded windows (Inception).

    Raises:
        ValueError: A layer that octave convolution cannot replace, or that has no meaning for pairs; it is named.
    """
    example = example_input(network)
    trial = _Trial(network, example, convs, alpha)
    if isinstance(trial.output, OctavePair) and trial.replaced:
        trial = _Trial(network, example, convs, alpha, exit_name=trial.replaced[-1])
    for name in trial.replaced:
        try:
            network.set_submodule(name, _octave_conv(convs[name], name, trial, variant, alpha))
        except ValueError as error:
            raise _naming(error, name, convs[name]) from error
    for name, met in trial.met.items():
        module = network.get_submodule(name)
        if met is not None and isinstance(module, MemberNorm):
            network.set_submodule(name, OctaveNorm.from_norm(module, met))
        elif met is not None and name not in trial.replaced:
            module.register_forward_pre_hook(_pair_to_tensor)
    if isinstance(_run(network, example), OctavePair):  # the network as it is now, so that what cannot work fails here
        raise ValueError("the network would return an octave pair: leave its last layers out of conv_layers")


class _Trial:
    """One pass of a plain network as if some of its convolutions made pairs.

    Those convolutions give pairs, norms and functions hand them on; other convolutions are given tensors.

    Attributes:
        met: For each convolution and norm that ran: the channels (high, low) of the pair that it met, None for a
            tensor.
        entry: The convolution that ran first.
        replaced: The convolutions that made pairs, in the order in which they ran; with them, `exit_name`.
        output: What the network returned.
    """

    def __init__(
        self,
        network: nn.Module,
        example: Tensor,
        convs: Mapping[str, PlainConv],
        alpha: float,
        exit_name: str | None = None,
    ) -> None:
        self.met: dict[str, Split | None] = {}
        self.entry: str | None = None
        self.replaced: list[str] = []
        self.exit_name = exit_name
        self._convs = convs
        self._alpha = alpha
        self.output = _run(network, example, self._enter, self._leave)

    def low_channels(self, name: str) -> tuple[int, int]:
        """Low channels that a convolution which becomes an octave one takes and gives."""
        conv = self._convs[name]
        low = 0 if name == self.entry else low_channels(self._alpha, conv.in_channels)
        taken = (self.met[name] or (0, low))[1]
        if name == self.exit_name:
            return taken, 0
        if name != self.entry and conv.groups == conv.in_channels:  # depthwise: each channel stays on its side
            return taken, taken * conv.out_channels // conv.in_channels
        return taken, low_channels(self._alpha, conv.out_channels)

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(module, _ConvNd | MemberNorm):
            return None
        if self.entry is None and isinstance(module, _ConvNd):
            self.entry = name
        x = args[0]
        met = x.channels if isinstance(x, OctavePair) else None
        if self.met.setdefault(name, met) != met:
            raise ValueError("it runs more than once, on feature maps that are split in different ways")
        return None if met is None else (x.to_tensor(), *args[1:])

    def _leave(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(module, MemberNorm):
            met = self.met.get(name)
            return None if met is None else OctavePair.from_tensor(output, met[1])
        if name not in self._convs or max(output.shape[2:]) == 1:
            return None
        if name not in self.replaced:
            self.replaced.append(name)
        low = self.low_channels(name)[1]
        return OctavePair.from_tensor(output, low) if low else None


def _octave_conv(
    conv: PlainConv, name: str, trial: _Trial, variant: Variant, alpha: float
) -> OctaveConv2d | OctaveConv3d:
    low_in, low_out = trial.low_channels(name)
    geometry = geometry_of(conv)
    variant = variant.in_dimensions(dimensions_of(conv))
    geometry["kernel_size"], geometry["padding"] = variant.resized(
        geometry["kernel_size"], geometry["padding"], geometry["dilation"]
    )
    layer = (OctaveConv2d if variant.dimensions == 2 else OctaveConv3d)(
        conv.in_channels,
        conv.out_channels,
        alpha_in=_share(low_in, conv.in_channels, alpha),
        alpha_out=_share(low_out, conv.out_channels, alpha),
        **geometry,
    )
    if low_in and trial.met[name] is None:
        layer.register_forward_pre_hook(_tensor_to_pair)
    return layer.to(conv.weight)


def _share(low: int, channels: int, alpha: float) -> float | Fraction:
    """`alpha` where it gives this number of low channels; a concatenation has others, and an entry or exit none."""
    if low == 0:
        return 0.0
    return alpha if low_channels(alpha, channels) == low else Fraction(low, channels)


def _tensor_to_pair(layer: OctaveConv2d | OctaveConv3d, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return OctavePair.from_tensor(args[0], layer.in_split[1]), *args[1:]


def _pair_to_tensor(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    x, *others = args  # small images may come as tensors: networks pool or enlarge them to the size of a dense layer
    return x.to_tensor() if isinstance(x, OctavePair) else x, *others


def _run(
    network: nn.Module,
    example: Tensor,
    enter: Callable[..., Any] = lambda *_: None,
    leave: Callable[..., Any] = lambda *_: None,
) -> Any:
    """What `network` returns in a trial pass; errors name the layer.

    `enter(name, module, args)` and `leave(name, module, args, output)` may change what a module is given and gives.
    """
    running: list[tuple[str, nn.Module]] = []

    def before(name: str, module: nn.Module, args: tuple[Any, ...]) -> Any:
        running.append((name, module))
        return enter(name, module, args)

    def after(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        changed = leave(name, module, args, output)
        running.pop()
        return changed

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            hooks.callback(module.register_forward_pre_hook(partial(before, name)).remove)
            hooks.callback(module.register_forward_hook(partial(after, name)).remove)
        try:
            return try_out(network, example)
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise _naming(error, *running[-1]) from error


def _naming(error: Exception, name: str, module: nn.Module) -> ValueError:
    layer = f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__
    return ValueError(
        f"octave convolutions do not fit {layer}: {str(error).rstrip('.')}. conv_layers can leave layers out."
    )
