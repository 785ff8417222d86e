"""The effective receptive field: how much each input position moves the output, measured by gradients.

W. Luo, Y. Li, R. Urtasun and R. Zemel, "Understanding the effective receptive field in deep convolutional neural
networks" (NeurIPS 2016): of the theoretical field, which `models.analysis` finds, the outer parts hardly count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.modes import in_mode


@dataclass(frozen=True)
class EffectiveField:
    """The gradient's energy over the input.

    Args:
        energy: float64 (*input sides), on the CPU: each position's share of the energy; all together are 1.
        samples: the random inputs that it is the mean of.
    """

    energy: Tensor
    samples: int

    def profile(self, axis: int) -> Tensor:
        """Energy along one axis, summed over the others."""
        others = [other for other in range(self.energy.ndim) if other != axis]
        return self.energy.sum(others) if others else self.energy

    @property
    def sigma(self) -> tuple[float, ...]:
        """Standard deviation of each axis's profile, in input positions.

        A gradient that falls off like a Gaussian of standard deviation s has an energy of s / sqrt(2).
        """
        return tuple(_sigma(self.profile(axis)) for axis in range(self.energy.ndim))

    def extent(self, share: float = 0.95) -> tuple[int, ...]:
        """Of each axis the fewest neighbouring positions whose profile holds `share` of the energy.

        Raises:
            ValueError: `share` is not above 0 and at most 1.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        return tuple(_shortest(self.profile(axis), share) for axis in range(self.energy.ndim))


def effective_field(network: nn.Module, input_size: Sequence[int], samples: int = 8, seed: int = 0) -> EffectiveField:
    """Measures the field of the output's centre: the squared gradient with respect to the input, over random inputs.

    The energy of input position p is the mean over inputs of sum_ck (d y_k / d x_cp)^2, y the values of the output's
    channels at its central position and c the channels of the input. One backward pass an input estimates it without
    bias: it starts from a random sign for each channel k, so that what they share does not count twice nor cancel.

    Inputs are white noise, from N(0, 1), as in the paper; networks are in evaluation mode, so that batch norms do not
    tie the positions of the input to one another.

    Args:
        network: maps (1, C, *sides) to (1, K, *sides of the output).
        input_size: (1, C, *sides); the field is cut where it reaches beyond that, and padding then shows in it.
        samples: random inputs.
        seed: of inputs and signs; torch's own generators are neither used nor moved.

    Raises:
        ValueError: `samples` is not positive, the network returns no map, or its centre depends on no input.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(seed)
    energy = torch.zeros(tuple(input_size[2:]), dtype=torch.double)
    with in_mode(network, training=False), torch.enable_grad():
        for _ in range(samples):
            images = torch.randn((1, *input_size[1:]), generator=generator).to(weight).requires_grad_()
            values = _central_values(network(images))
            signs = 2 * torch.randint(2, values.shape, generator=generator) - 1
            (gradient,) = torch.autograd.grad(values, images, signs.to(values), materialize_grads=True)
            energy += gradient[0].double().square().sum(0).cpu()
    total = energy.sum()
    if total == 0:
        raise ValueError(f"the centre of {type(network).__name__}'s output depends on no position of the input")
    return EffectiveField(energy / total, samples)


def _central_values(output: Tensor) -> Tensor:
    """(K,), of an output (1, K, *sides)."""
    if not isinstance(output, Tensor) or output.ndim < 3:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"an effective receptive field is that of a map (1, channels, *sides), the output is {shape}")
    values = output[0]
    for side in output.shape[2:]:
        values = values.select(1, side // 2)
    return values


def _sigma(profile: Tensor) -> float:
    places = torch.arange(len(profile), dtype=profile.dtype)
    mean = (profile * places).sum()
    return float((profile * (places - mean).square()).sum().sqrt())


def _shortest(profile: Tensor, share: float) -> int:
    upto = torch.cat([profile.new_zeros(1), profile.cumsum(0)])
    # Rounding must not ask for more than there is. An interval [first, last) holds upto[last] - upto[first].
    wanted = upto + share - 1e-9
    firsts = torch.nonzero(wanted <= upto[-1]).flatten()
    return int((torch.searchsorted(upto, wanted[firsts]) - firsts).min())
