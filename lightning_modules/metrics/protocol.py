"""What a distance between generated and real images depends on, as a name and as the key of a cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal, get_args

ExtractorName = Literal["contrastive", "inception"]
Split = Literal["train", "val", "test"]
QUANTISATION = "uint8, rounded"
"""Real images are bytes; generated ones become bytes before they are measured (`pictures.images.to_uint8`)."""


@dataclass(frozen=True)
class Protocol:
    """How generated images are measured. Numbers of different protocols must not be compared, so each has its own name.

    Args:
        extractor: Where features come from: "contrastive" or "inception".
        num_generated: Number of generated images. The Fréchet distance falls as it grows, for the same generator.
        split: The real images, all of "train", "val" or "test".

    Raises:
        ValueError: An unknown extractor or split, or fewer than two images, which have no covariance.
    """

    extractor: ExtractorName = "contrastive"
    num_generated: int = 2000
    split: Split = "train"

    def __post_init__(self) -> None:
        for key, value, known in (("extractor", self.extractor, ExtractorName), ("split", self.split, Split)):
            if value not in get_args(known):
                raise ValueError(f"{key} must be one of {', '.join(get_args(known))}, got {value!r}")
        if self.num_generated < 2:
            raise ValueError(f"num_generated must be 2 or more, got {self.num_generated}: one image has no covariance")

    def metric_name(self, measure: str) -> str:
        """`fid_contrastive_2000`, and `fid_contrastive_2000_test` where the reference is not the training split."""
        name = f"{measure}_{self.extractor}_{self.num_generated}"
        return name if self.split == "train" else f"{name}_{self.split}"


@dataclass(frozen=True)
class CacheKey:
    """What cached results were made from; whatever differs in one of its fields is another file."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits."""
        content = json.dumps([type(self).__name__, asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ExtractorKey(CacheKey):
    """What a trained extractor depends on.

    Args:
        recipe: Name and version of the training.
        fingerprint: Of the images that it was trained on.
        split: Which part of the data they are.
        image_shape: (C, H, W).
        seed: Of initial weights and augmentation.
    """

    recipe: str
    fingerprint: str
    split: str
    image_shape: tuple[int, int, int]
    seed: int = 0


@dataclass(frozen=True)
class StatisticsKey(CacheKey):
    """What the statistics of real images depend on.

    Args:
        fingerprint: Of the images: data set, content, split, crop and size.
        split: Which part of the data they are.
        image_shape: (C, H, W).
        extractor: Its name.
        extractor_sha256: Of its weights.
        resize: How the extractor brings images to the size that it wants.
        num_compared: Images that are kept one by one, see `RealStatistics`.
        quantisation: How generated images become bytes.
        version: Of the statistics; raised with every change of what is computed.
    """

    fingerprint: str
    split: str
    image_shape: tuple[int, int, int]
    extractor: str
    extractor_sha256: str
    resize: str
    num_compared: int
    quantisation: str = QUANTISATION
    version: int = 1
