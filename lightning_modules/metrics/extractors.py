"""Feature extractors: frozen networks that turn images into vectors whose distributions can be compared."""

from __future__ import annotations

import hashlib
import pickle
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn


class FeatureExtractor(ABC):
    """A frozen network; bytes in, features out, the same for one image whatever stands around it.

    It is no `nn.Module`: whoever holds it has its weights neither in `parameters()` nor in a checkpoint, and a
    `train()` does not reach it.

    Args:
        network: Frozen and in eval mode from here on.
    """

    name: ClassVar[str]
    num_features: ClassVar[int]
    resize: ClassVar[str]  # how images are brought to the size that the network wants

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)
        self.sha256 = weights_sha256(network)

    def to(self, device: torch.device) -> Self:
        self.network.to(device).to(memory_format=torch.channels_last)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 (N, D) of images uint8 (N, C, H, W), computed in float32 whatever the precision of the run.

        Raises:
            TypeError: The images are not uint8: floats have no range that could be trusted.
            ValueError: They have another shape, or another number of channels than the extractor takes.
        """
        if images.dtype != torch.uint8:
            raise TypeError(f"extractors take uint8 images (`pictures.images.to_uint8`), got {images.dtype}")
        if images.dim() != 4:
            raise ValueError(f"extractors take images (N, C, H, W), got shape {tuple(images.shape)}")
        with torch.autocast(images.device.type, enabled=False):
            return self.features(images).float()

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Features (N, D) of images uint8 (N, C, H, W)."""


class InceptionExtractor(FeatureExtractor):
    """The 2,048 pool features of the Inception-v3 with which the Fréchet inception distance is defined.

    Network, weights (converted from TensorFlow's of 2015-12-05) and TensorFlow's resizing come from torch-fidelity.
    Grey images are repeated to three channels.
    """

    name = "inception"
    num_features = 2048
    resize = "299, bilinear as TensorFlow 1"

    def features(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            images = images.repeat(1, 3, 1, 1)
        if images.shape[1] != 3:
            raise ValueError(f"extractor 'inception' takes grey or RGB images, got {images.shape[1]} channels")
        return self.network(images)[0]


def load_inception(weights: str | Path | None = None) -> InceptionExtractor:
    """The extractor with weights from a file, or downloaded once to torch's hub folder.

    Raises:
        ModuleNotFoundError: torch-fidelity is not installed.
        FileNotFoundError: The named file is not there.
        ValueError: It holds other weights.
        OSError: The weights could not be downloaded.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "extractor 'inception' needs torch-fidelity: pip install convsuite[fid] (and name a local file in "
            "extractor_weights where its weights cannot be downloaded). extractor 'contrastive', a small network "
            "trained on the data at hand, needs neither"
        ) from error
    if weights is None:
        _download(URL_INCEPTION_V3)
    else:
        _check_weights_file(Path(weights))
    path = None if weights is None else str(weights)
    try:
        network = FeatureExtractorInceptionV3(InceptionExtractor.name, ["2048"], feature_extractor_weights_path=path)
    except RuntimeError as error:
        raise ValueError(f"extractor_weights {weights}: these are not torch-fidelity's weights of Inception") from error
    return InceptionExtractor(network)


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of a network's state, wherever it lies."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _download(url: str) -> None:
    """Into torch's hub folder, where torch-fidelity finds it; checked, which torch-fidelity does not do."""
    try:
        torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # a wrong hash is a RuntimeError
        raise OSError(
            f"Inception's weights could not be downloaded from {url} ({error}): name a local copy in "
            "extractor_weights, or choose extractor 'contrastive'"
        ) from error


def _check_weights_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"extractor_weights: there is no file {path}")
    try:
        # torch-fidelity would run code from the file.
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise ValueError(f"extractor_weights {path} is damaged, or holds more than weights") from error
