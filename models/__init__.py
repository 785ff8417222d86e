"""Networks and convolution variants in pure torch: nothing here knows of Lightning, data, files or logging."""

from models import fashion_cnn as fashion_cnn  # importing a family registers its networks
from models.registry import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "register_model"]
