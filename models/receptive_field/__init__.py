"""Receptive fields, exactly, of any network: the spatial structure of its feature maps followed through one pass."""

from models.receptive_field.axis import AxisMap
from models.receptive_field.feature_map import FeatureMap
from models.receptive_field.tracer import Ended, SpatialTracer

__all__ = ["AxisMap", "Ended", "FeatureMap", "SpatialTracer"]
