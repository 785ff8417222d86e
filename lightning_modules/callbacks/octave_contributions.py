"""What the high and the low maps of an octave generator contribute to its images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_modules.callbacks.generated_pictures import GeneratedPicture, generated, picture_latents, when
from lightning_modules.pictures.images import image_grid
from lightning_modules.pictures.panels import draw_panels
from models.convs import OctaveConv2d, OctaveConvTranspose2d, OctavePair
from models.convs.octave.pair import HIGH, LOW

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class OctaveContributions(GeneratedPicture):
    """Draws `octave_contributions.png`: samples, and their two parts, made by high and by low maps alone.

    An octave generator ends in a layer from a pair to one map, W_hh * high + upsample(W_lh * low), and what follows it,
    tanh as a rule. The second row is made with zero in place of the low maps, the third in place of the high ones: the
    tanh of each of two summands, of whose sum the sample is the tanh (a bias counts in both). Nothing is drawn of
    generators without such a layer, nor where a member is absent. See `GeneratedPicture`.

    Args:
        columns: Number of samples.
        every_n_epochs: Also draw while training, every so many epochs.
    """

    name = "octave_contributions"

    def __init__(self, columns: int = 10, every_n_epochs: int | None = None) -> None:
        super().__init__(every_n_epochs)
        if columns < 1:
            raise ValueError(f"columns must be 1 or more, got {columns}")
        self.columns = columns

    def draw(self, trainer: Trainer, task: Any) -> Figure | None:
        layer = exit_layer(task.sampler)
        if layer is None:
            return None
        latents = picture_latents(task, self.columns)
        images = [generated(task, latents)]
        for member in (HIGH, LOW):
            with only_member(layer, member):
                images.append(generated(task, latents))
        grid = image_grid(torch.cat(images), self.columns)
        title = f"What high and low maps contribute, {when(trainer)}"
        return draw_panels({title: grid}, row_names=("sample", "high maps", "low maps"))


def exit_layer(network: nn.Module) -> nn.Module | None:
    """The last octave layer that makes one map of two members; None where there is none."""
    layers = [
        module
        for module in network.modules()
        if isinstance(module, OctaveConv2d | OctaveConvTranspose2d) and module.alpha_out == 0 and all(module.in_split)
    ]
    return layers[-1] if layers else None


@contextmanager
def only_member(layer: nn.Module, member: int) -> Iterator[None]:
    """Within this block the other member of what `layer` takes is zero; `member` is `HIGH` or `LOW`."""

    def keep(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, *others = args
        high, low = (x[i] if i == member else torch.zeros_like(x[i]) for i in (HIGH, LOW))
        return OctavePair(high, low), *others

    hook = layer.register_forward_pre_hook(keep)
    try:
        # A network that is compiled already does not look for hooks again.
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        hook.remove()
