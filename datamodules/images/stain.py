"""Variation of staining: haematoxylin, eosin and DAB made stronger or weaker in an image of stained tissue."""

import math

import torch
from torch import Tensor

STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Absorbance of red, green and blue light by haematoxylin, eosin and DAB (Ruifrok and Johnston, 2001)."""


def jitter_stains(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Change the concentration c of each stain in each image to scale * c + shift.

    By the law of Beer and Lambert stains add up in absorbance, A = -log10((I + 1) / 256) = c M for a pixel I of values
    0 to 255 and the rows M of `STAINS`. So the whole change is one affine map of the absorbances of an image:
    A' = A M^-1 diag(scale) M + shift M. A scale of 1 and a shift of 0 give the image back exactly.

    Drawing scale in [1 - s, 1 + s] and shift in [-s, s] is the stain augmentation of Tellez et al. (2018).

    Args:
        images: uint8 (N, H, W, 3), RGB.
        scale: (N, 3), for haematoxylin, eosin and DAB.
        shift: (N, 3), in units of absorbance.

    Returns:
        uint8 (N, H, W, 3).
    """
    stains = torch.tensor(STAINS, dtype=torch.float64)
    mixing = (torch.linalg.inv(stains) @ (scale.double()[:, :, None] * stains)).float()
    offset = (-math.log(10) * shift.double() @ stains).float()
    light = torch.arange(1, 257).div(256).log()[images.flatten(1, 2).long()]  # (N, H * W, 3), natural logarithms
    changed = torch.baddbmm(offset[:, None], light, mixing).exp_().mul_(256).sub_(1)
    return changed.round_().clamp_(0, 255).to(torch.uint8).view_as(images)
