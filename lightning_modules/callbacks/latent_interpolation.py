"""The way from one sample to another through a generator's latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_modules.callbacks.generated_pictures import GeneratedPicture, generated, picture_latents, when
from lightning_modules.pictures.images import image_grid
from lightning_modules.pictures.panels import draw_panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LatentInterpolation(GeneratedPicture):
    """Draws `interpolation.png`: in each row the images between two latents, see `GeneratedPicture`.

    A generator that has learnt the data changes one image into the other by way of images; one that has learnt it by
    heart jumps between them.

    Args:
        rows: Pairs of latents.
        columns: Images from the first latent to the second, both included.
        every_n_epochs: Also draw while training, every so many epochs.
    """

    name = "interpolation"

    def __init__(self, rows: int = 6, columns: int = 10, every_n_epochs: int | None = None) -> None:
        super().__init__(every_n_epochs)
        if rows < 1 or columns < 2:
            raise ValueError(f"rows must be 1 or more and columns 2 or more, got {rows} and {columns}")
        self.rows = rows
        self.columns = columns

    def draw(self, trainer: Trainer, task: Any) -> Figure:
        starts, ends = picture_latents(task, 2 * self.rows).chunk(2)
        images = generated(task, interpolate_on_sphere(starts, ends, self.columns).flatten(0, 1))
        title = f"From one latent to another, {when(trainer)}"
        return draw_panels({title: image_grid(images, self.columns)})


def interpolate_on_sphere(starts: Tensor, ends: Tensor, count: int) -> Tensor:
    """Spherical interpolation of latents (N, D): `count` steps of equal angle, (N, count, D), the ends included.

    With a = starts, b = ends and w the angle between them, the point at t in [0, 1] is
    (sin((1 - t) w) a + sin(t w) b) / sin w. Normal latents lie near a sphere; a straight line would leave it, for where
    the generator was never trained.
    """
    t = torch.linspace(0, 1, count, dtype=torch.float64, device=starts.device)[:, None]
    a, b = starts.double()[:, None], ends.double()[:, None]
    angle = torch.acos(torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1))[..., None]
    # Below this the sines are no more than their arguments, to the last bit, and their ratio is 0 / 0 at 0.
    small = angle < 1e-6
    safe = angle.where(~small, 1.0)
    from_a = torch.where(small, 1 - t, ((1 - t) * safe).sin() / safe.sin())
    from_b = torch.where(small, t, (t * safe).sin() / safe.sin())
    return (from_a * a + from_b * b).to(starts.dtype)
