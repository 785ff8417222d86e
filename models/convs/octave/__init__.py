"""Octave convolution: feature maps as pairs of a full and a half resolution, and the layers that work on them."""

from models.convs.octave import functions  # noqa: F401  (registers what torch functions do to pairs)
from models.convs.octave.layers import OctaveConv2d, OctaveConv3d, OctaveConvTranspose2d, OctaveConvTranspose3d
from models.convs.octave.norm import BetaWeighting, OctaveNorm, get_betas, set_betas
from models.convs.octave.pair import OctavePair
from models.convs.octave.variant import OctaveVariant

__all__ = [
    "BetaWeighting",
    "OctaveConv2d",
    "OctaveConv3d",
    "OctaveConvTranspose2d",
    "OctaveConvTranspose3d",
    "OctaveNorm",
    "OctavePair",
    "OctaveVariant",
    "get_betas",
    "set_betas",
]
