"""Least-squares fit of a layer that synthesises its filters to given, free-form filters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.convs.dau import DAUConv2d
from models.convs.gaussian import GaussianDerivativeConv2d, GaussianDerivativeConv3d
from models.convs.synthesised import SynthesisedConv

MAX_STEPS = 200  # of L-BFGS

# Kernels that nearly cancel reproduce filters by huge coefficients, which the first step of a training would upset: a
# small change of the geometry would then change the filters beyond recognition. Two penalties keep away from there.
RIDGE = 0.01  # on the coefficients, squared, of kernels of unit norm
ANCHOR = 0.01  # on the mean squared change of the geometry

TINY = torch.finfo(torch.float64).tiny


def fit_filters(layer: SynthesisedConv, weight: Tensor, bias: Tensor | None = None) -> float:
    r"""Give `layer` the parameters whose filters come closest to `weight`, in place, and its bias.

    Filters are linear in the coefficients c and not in the geometry g (of the separated Gaussian form, beta counts as
    geometry): with the kernels D(g), each of unit norm, it minimises

        (|c D(g) - weight|^2 + RIDGE^2 |c|^2) / |weight|^2 + ANCHOR mean(g - g_0)^2.

    For each g the best c has a closed form, so that L-BFGS searches g alone, from the layer's own g_0 on and for
    `MAX_STEPS` steps at most. All of it in float64 and without random numbers. What the layer does not learn (see
    `trainable`) stays as it is.

    Args:
        layer: A Gaussian derivative layer (RFNN too) or displaced aggregation units.
        weight: (out_channels, in_channels // groups, *size). Filters of another size than the layer's are compared
            about their centre: zeros around smaller ones; what a larger one has outside of the layer's kernel is lost.
        bias: (out_channels,), copied; None for zeros.

    Returns:
        The relative residual |dense_weight() - weight| / |weight| over the pixels of both: 0 for equal filters, 1 for
        zeros. It is never above that of the layer as it was: such a fit is not taken over.

    Raises:
        ValueError: Other channels, a size whose centre lies between pixels, a bias that the layer does not have, or a
            kind of layer that nobody has written down the linear form of.
    """
    weight = weight.detach().to("cpu", torch.float64)
    target = _centred(layer, weight)
    _take_bias(layer, bias)
    initial = copy.deepcopy(layer.state_dict())
    before = _distance(layer, target)
    layer.load_state_dict(_fitted(layer, target).state_dict())
    after = _distance(layer, target)
    if not after <= before:
        layer.load_state_dict(initial)
        after = before
    cut_off = (weight.square().sum() - target.square().sum()).clamp_min(0)
    return float((after.square() + cut_off).sqrt() / weight.norm().clamp_min(TINY))


def _centred(layer: SynthesisedConv, weight: Tensor) -> Tensor:
    """`weight`, cut or filled up with zeros to the layer's kernel size."""
    channels = (layer.out_channels, layer.in_channels // layer.groups)
    if tuple(weight.shape[:2]) != channels or weight.ndim != 2 + layer.dimensions:
        raise ValueError(
            f"filters (output channels, input channels of a group, {'depth, ' * (layer.dimensions - 2)}height, width) "
            f"of {tuple(weight.shape)} cannot be fitted by a layer of {channels} channels"
        )
    given = tuple(weight.shape[2:])
    missing = [size - side for size, side in zip(layer.kernel_size, given, strict=True)]
    if any(pixels % 2 for pixels in missing):
        raise ValueError(
            f"filters of {'x'.join(map(str, given))} have no pixel in their centre, those of "
            f"{'x'.join(map(str, layer.kernel_size))} have"
        )
    return F.pad(weight, [pixels // 2 for pixels in reversed(missing) for _ in range(2)])


@torch.no_grad()
def _take_bias(layer: SynthesisedConv, bias: Tensor | None) -> None:
    if layer.bias is None:
        if bias is not None:
            raise ValueError("the filters come with a bias, which the layer that is to replace them does not have")
        return
    if bias is None:
        layer.bias.zero_()
    else:
        layer.bias.copy_(bias)


@torch.no_grad()
def _distance(layer: SynthesisedConv, target: Tensor) -> Tensor:
    return (layer.dense_weight().to("cpu", torch.float64) - target).norm()


@torch.inference_mode(False)
@torch.enable_grad()
def _fitted(layer: SynthesisedConv, target: Tensor) -> SynthesisedConv:
    """A copy of `layer` in float64 with fitted parameters."""
    twin = copy.deepcopy(layer).to("cpu", torch.float64).requires_grad_()
    coefficients = _coefficients(twin)
    searched = [p for p in twin.parameters() if p is not coefficients and p is not twin.bias]
    geometry = twin.geometry_parameters()
    start = [parameter.detach().clone() for parameter in geometry]
    count = max(1, sum(parameter.numel() for parameter in geometry))
    energy = target.square().sum().clamp_min(TINY)

    if searched:
        optimizer = torch.optim.LBFGS(
            searched,
            max_iter=MAX_STEPS,
            history_size=20,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            changes = [(parameter - first).square().sum() for parameter, first in zip(geometry, start, strict=True)]
            objective = _solve(twin, target)[1] / energy + ANCHOR * sum(changes) / count
            objective.backward()
            return objective

        optimizer.step(closure)
    with torch.no_grad():
        view = _terms_last(twin)
        view.copy_(_solve(twin, target)[0].reshape(view.shape))
    return twin


def _solve(layer: SynthesisedConv, target: Tensor) -> tuple[Tensor, Tensor]:
    """The best coefficients (blocks, columns, terms) at the present geometry, and the ridge objective with them.

    The gradient of the objective is that of the minimum over the coefficients: they count as constants, since at the
    minimum it does not change with them.
    """
    kernels = _kernels(layer)  # (blocks, terms, values)
    norms = kernels.norm(dim=2, keepdim=True)
    norms = norms.clamp_min(1e-5 * float(norms.detach().max()))  # odd derivatives vanish on a kernel of one pixel
    kernels = kernels / norms
    columns = target.reshape(len(kernels), -1, kernels.shape[2])
    with torch.no_grad():
        gram = kernels @ kernels.mT
        gram.diagonal(dim1=1, dim2=2).add_(RIDGE**2)
        solution = torch.linalg.solve(gram, kernels @ columns.mT).mT
    objective = (solution @ kernels - columns).square().sum() + RIDGE**2 * solution.square().sum()
    return solution / norms.mT, objective


# The linear form of each kind of layer: outputs and inputs of the filters, in their order in the dense weight, come in
# blocks of columns; within a block filters (or rows of filters) are sums of the same kernels.


def _coefficients(layer: SynthesisedConv) -> nn.Parameter:
    """The parameter that the filters are linear in."""
    match layer:
        case DAUConv2d():
            return layer.w
        case GaussianDerivativeConv2d() | GaussianDerivativeConv3d():
            return layer.lambda_ if layer.separated else layer.omega
    raise ValueError(f"models/convs/fitting.py does not know how filters depend on the parameters of {type(layer)}")


def _terms_last(layer: SynthesisedConv) -> Tensor:
    """A view of that parameter: outputs, inputs where it has them, terms."""
    coefficients = _coefficients(layer)
    if isinstance(layer, DAUConv2d):
        return coefficients.permute(1, 2, 0)
    return coefficients.movedim(1, -1)


def _kernels(layer: SynthesisedConv) -> Tensor:
    """What the coefficients multiply, (blocks, terms, values).

    A block is a filter of DAU, with its own units; a basis of the standard Gaussian form; of the separated form outputs
    that share a basis and a group, whose values run over the inputs too.
    """
    if isinstance(layer, DAUConv2d):
        along_width, along_height = layer._profiles()
        return torch.einsum("uhoi,uwoi->oiuhw", along_height, along_width).flatten(0, 1).flatten(2)
    assert isinstance(layer, GaussianDerivativeConv2d | GaussianDerivativeConv3d)
    kernels = layer.kernels().flatten(2)  # (B, N, pixels)
    if not layer.separated:
        return kernels
    kernels = kernels.repeat_interleave(len(layer.beta) // layer.num_bases, 0)
    return (layer.beta[..., None] * kernels[:, :, None]).flatten(2)
