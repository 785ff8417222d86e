"""Stacked U-Nets for classes of images and of pixels (Shah, Ghosh, Davis and Goldstein, arXiv 1804.10343)."""

from models.sunet.network import SUNet
from models.sunet.official import load_official_state_dict

__all__ = ["SUNet", "load_official_state_dict"]
