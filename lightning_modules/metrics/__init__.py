"""What generated images are measured by: distances between their features and those of real images."""

from lightning_modules.metrics.generation import GenerationMetrics
from lightning_modules.metrics.protocol import Protocol

__all__ = ["GenerationMetrics", "Protocol"]
