"""timm's networks under the names `timm/<name>`."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.names import check_name

TIMM_PREFIX = "timm/"


def create_timm_model(name: str, *, in_channels: int = 3, num_classes: int = 1000, **options: Any) -> nn.Module:
    """Build timm's network `name`, with random weights unless `pretrained=True` is among the options.

    Raises:
        UnknownNameError: timm has no such network.
        ValueError: The network does not take these options.
    """
    import timm  # slow to import, and only wanted here

    architecture = name.split(".")[0]  # timm appends the tag of the weights after a dot
    check_name("timm model", architecture, timm.list_models())
    try:
        return timm.create_model(name, in_chans=in_channels, num_classes=num_classes, **options)
    except TypeError as error:
        raise ValueError(
            f"timm model {name!r} does not take these options: {error}. "
            "`model_options: null` drops those of another network."
        ) from error
