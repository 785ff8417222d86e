"""Networks and convolution variants in pure torch: nothing here knows of Lightning, data, files or logging."""

from models import dcgan as dcgan  # importing a family registers its networks
from models import deepmedic as deepmedic
from models import fashion_cnn as fashion_cnn
from models import fcn as fcn
from models import slice_wise as slice_wise
from models import sunet as sunet
from models import unet as unet
from models import vgg as vgg
from models.registry import create_model, list_models, register_model

__all__ = ["create_model", "list_models", "register_model"]
