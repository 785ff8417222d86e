"""Weights as the SUNet authors publish them: their names for the layers, and how they come into a network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

WRAPPER_PREFIX = "module."  # of a network in DataParallel, as which theirs were saved
MARK = "features.residual1.conv.0.weight"  # a name that all their files hold, and no other's
LISTED = 10  # names of a kind in a message

_LAYERS = {
    r"features\.conv1": "stem",
    r"features\.residual1\.bn\.0": "residual.norm1",
    r"features\.residual1\.conv\.0": "residual.conv1",
    r"features\.residual1\.conv\.2": "residual.norm2",
    r"features\.residual1\.conv\.4": "residual.conv2",
    r"features\.residual1\.shortcut\.0": "residual.shortcut",
    r"features\.bn2": "norm",
    r"linear": "linear",
}
_HEAD = {r"final\.conv1": "segmentation_head.conv"}
_DEGRIDDING_HEAD = {
    r"final\.conv([12])": r"segmentation_head.conv\1",
    r"final\.bn([12])": r"segmentation_head.norm\1",
    r"final\.conv3": "segmentation_head.conv",
}
_MODULE = r"features\.unet(\d+)_(\d+)\."
_MODULE_LAYERS = {
    r"(?:down\.0|bn)\.bn0": "norm",  # where the width changes, the skip has that norm, too
    r"down\.0\.conv0": "reduce",
    r"down\.(\d+)\.bn([12])": r"encoders.\1.norm\2",
    r"down\.(\d+)\.conv([12])": r"encoders.\1.conv\2",
    r"up\.(\d+)\.bn0": r"decoders.\1.norm1",
    r"up\.(\d+)\.deconv0": r"decoders.\1.deconv",
    r"up\.(\d+)\.bn1": r"decoders.\1.norm2",
    r"up\.(\d+)\.deconv1": r"decoders.\1.conv",
    r"up\.0\.bn2": "expand_norm",
    r"up\.0\.conv2": "expand",
    r"upsample\.conv0": "skip",
}


def with_own_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The authors' weights under the names of `SUNet`; None where these are no weights of theirs.

    Names may all begin with "module.". Those that no layer of theirs has stay as they are.
    """
    if all(name.startswith(WRAPPER_PREFIX) for name in weights):
        weights = {name.removeprefix(WRAPPER_PREFIX): value for name, value in weights.items()}
    if MARK not in weights:
        return None
    head = _DEGRIDDING_HEAD if any(name.startswith("final.conv3.") for name in weights) else _HEAD
    return {_own_name(name, _LAYERS | head): value for name, value in weights.items()}


def _own_name(name: str, layers: Mapping[str, str]) -> str:
    layer, _, tensor = name.rpartition(".")
    module = re.match(_MODULE, layer)
    if module is None:
        return f"{_translated(layer, layers)}.{tensor}"
    own = _translated(layer[module.end() :], _MODULE_LAYERS)
    return f"blocks.{int(module[1]) - 1}.{module[2]}.{own}.{tensor}"


def _translated(layer: str, layers: Mapping[str, str]) -> str:
    for pattern, own in layers.items():
        if match := re.fullmatch(pattern, layer):
            return match.expand(own)
    return layer


def load_official_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Copy weights as the SUNet authors publish them into `model`, in place.

    All forms of a network (output strides, strided or dilated modules) take the same weights.

    Args:
        model: A `SUNet` of plain convolutions. A classifier takes a classifier's weights, a segmentation network those
            of a segmentation network with the same head, since every layer must be given.
        state_dict: Their names to tensors, with or without "module." in front, by themselves or under "state_dict", as
            in their files. A batch norm's count of batches may be missing, as in files of old versions of torch.

    Raises:
        TypeError: `model` is no SUNet.
        ValueError: It has layers of a variant, these are no weights of the authors, or they are of another network:
            the message lists what differs. Nothing is copied then.
    """
    from_published = getattr(model, "from_published", None)
    if from_published is None:
        raise TypeError(f"the SUNet authors' weights are for a SUNet, got a {type(model).__name__}")
    variants = sorted(
        {
            type(layer).__name__
            for layer in model.modules()
            if hasattr(layer, "kernel_size") and type(layer) not in (nn.Conv2d, nn.ConvTranspose2d)
        }
    )
    if variants:
        raise ValueError(
            f"the SUNet authors' weights are for plain convolutions, but this network has {', '.join(variants)}: "
            "build it with conv 'standard'"
        )
    weights = from_published(state_dict.get("state_dict", state_dict))
    if weights is None:
        raise ValueError(
            f"these are no weights of the SUNet authors, which hold {MARK!r}, with or without {WRAPPER_PREFIX!r} in "
            f"front. Names here: {_listed([*state_dict])}"
        )
    _check(model, weights)
    model.load_state_dict(weights, strict=False)


def _check(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in weights if name not in own]
    shapes = [
        f"{name} {tuple(weights[name].shape)} in place of {tuple(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"these weights of the SUNet authors do not fit this {type(model).__name__}. Missing there: "
            f"{_listed(missing)}. Unexpected: {_listed(unexpected)}. Of other shapes: {_listed(shapes)}. Where the "
            "rest is to keep its initialisation, as the head of a network that starts from a classifier: init_from "
            "and init_skip of a task, or load_state_dict with what model.from_published(weights) gives"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED]) or "none"
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown
