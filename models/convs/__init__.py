"""The registry of convolution variants: one file (or package) a variant, one interface for every network.

create_conv("gaussian", 16, 32, 7, padding=3, order=2)     one layer
build_variant({"name": "gaussian", "order": 2})            what a network asks for its layers
"""

from models.convs.dau import DAUConv2d
from models.convs.depthwise_separable import DepthwiseSeparableConv2d, DepthwiseSeparableConv3d
from models.convs.gaussian import GaussianDerivativeConv2d, GaussianDerivativeConv3d
from models.convs.octave import OctaveConv2d, OctaveConv3d, OctaveConvTranspose2d, OctaveConvTranspose3d, OctavePair
from models.convs.registry import ConvSpec, build_variant, create_conv, list_convs, register_conv
from models.convs.rfnn import RFNNConv2d
from models.convs.standard import StandardVariant
from models.convs.synthesised import SynthesisedConv, SynthesisedConv2d, SynthesisedConv3d, geometry_parameters
from models.convs.variant import Position, SpatialVariant, Variant

__all__ = [
    "ConvSpec",
    "DAUConv2d",
    "DepthwiseSeparableConv2d",
    "DepthwiseSeparableConv3d",
    "GaussianDerivativeConv2d",
    "GaussianDerivativeConv3d",
    "OctaveConv2d",
    "OctaveConv3d",
    "OctaveConvTranspose2d",
    "OctaveConvTranspose3d",
    "OctavePair",
    "Position",
    "RFNNConv2d",
    "SpatialVariant",
    "StandardVariant",
    "SynthesisedConv",
    "SynthesisedConv2d",
    "SynthesisedConv3d",
    "Variant",
    "build_variant",
    "create_conv",
    "geometry_parameters",
    "list_convs",
    "register_conv",
]
