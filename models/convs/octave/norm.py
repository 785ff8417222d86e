"""What follows an octave convolution: a norm of each member, and the beta weighting of OC-GAN."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from models.convs.octave.pair import OctavePair, Split
from models.convs.variant import group_count

MemberNorm = _NormBase | nn.GroupNorm
"""What normalises a member: batch, instance or group norm."""

_Norm = TypeVar("_Norm", bound=MemberNorm)


class BetaWeighting(nn.Module):
    """(beta_H high, beta_L low): the weighting of the two resolutions of OC-GAN (Durall et al., 2019, section 3.3).

    The betas are buffers, so checkpoints carry them; `set_betas` sets them from outside. Both are 1 at first, and then
    nothing is multiplied.
    """

    beta_high: Tensor
    beta_low: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beta_high", torch.ones(()))
        self.register_buffer("beta_low", torch.ones(()))
        self.is_weighted = False

    def set_betas(self, beta_high: float, beta_low: float) -> None:
        self.beta_high.fill_(beta_high)
        self.beta_low.fill_(beta_low)
        self._update()

    def forward(self, x: OctavePair) -> OctavePair:
        if not self.is_weighted:
            return x
        return OctavePair(_times(x.high, self.beta_high), _times(x.low, self.beta_low), x.full_size)

    def _update(self) -> None:
        """What the values say is kept as a flag: asking them in each pass would wait for the device."""
        self.is_weighted = (float(self.beta_high), float(self.beta_low)) != (1.0, 1.0)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._update()


class OctaveNorm(BetaWeighting):
    """A norm of each member, with statistics of its own, then the beta weighting.

    Maps pairs to pairs of the same shape: (beta_H norm_h(high), beta_L norm_l(low)).

    Args:
        high, low: The members' norms, of any kind; None for a member that is absent.
    """

    def __init__(self, high: MemberNorm | None, low: MemberNorm | None) -> None:
        super().__init__()
        self.high = high
        self.low = low

    @classmethod
    def from_norm(cls, norm: MemberNorm, channels: Split) -> OctaveNorm:
        """The same norm, its values and any activation behind it included, of the (high, low) `channels` of a pair."""
        return cls(_of_channels(norm, 0, channels[0]), _of_channels(norm, channels[0], channels[1]))

    def forward(self, x: OctavePair) -> OctavePair:
        if not isinstance(x, OctavePair):
            raise TypeError(f"{type(self).__name__} takes an OctavePair, got {type(x).__name__}; is it behind an exit?")
        high = self._normalise(self.high, x.high, self.beta_high)
        return OctavePair(high, self._normalise(self.low, x.low, self.beta_low), x.full_size)

    def _normalise(self, norm: MemberNorm | None, x: Tensor | None, beta: Tensor) -> Tensor | None:
        if norm is None:
            return None
        if not self.is_weighted:
            return norm(x)
        if not norm.affine:
            return _times(norm(x), beta)
        # beta (gain x + shift) = (beta gain) x + beta shift: numbers a channel instead of numbers a pixel.
        weighted = {"weight": norm.weight * beta, "bias": norm.bias * beta}
        return torch.func.functional_call(norm, weighted, (x,))


def _of_channels(norm: _Norm, start: int, count: int) -> _Norm | None:
    if count == 0:
        return None
    part = copy.deepcopy(norm)
    if isinstance(part, nn.GroupNorm):
        part.num_channels, part.num_groups = count, group_count(count, at_most=part.num_groups)
    else:
        part.num_features = count
    for name, value in (*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)):
        if value.ndim:
            own = value.detach()[start : start + count].clone()
            setattr(part, name, nn.Parameter(own, value.requires_grad) if isinstance(value, nn.Parameter) else own)
    return part


def _times(x: Tensor | None, beta: Tensor) -> Tensor | None:
    return None if x is None else x * beta.to(x.dtype)


def set_betas(network: nn.Module, beta_high: float, beta_low: float) -> None:
    """Set the weighting of every octave norm in `network`.

    Copies of a network, such as an average of its weights over time, have betas of their own.
    """
    for weighting in _weightings(network):
        weighting.set_betas(beta_high, beta_low)


def get_betas(network: nn.Module) -> tuple[float, float] | None:
    """(beta_high, beta_low) of the octave norms in `network`; None where it has none."""
    weightings = _weightings(network)
    return (float(weightings[0].beta_high), float(weightings[0].beta_low)) if weightings else None


def _weightings(network: nn.Module) -> list[BetaWeighting]:
    return [module for module in network.modules() if isinstance(module, BetaWeighting)]
