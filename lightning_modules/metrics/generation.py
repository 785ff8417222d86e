"""Fréchet distance, kernel distance and coverage of generated images, over all processes of a run."""

from __future__ import annotations

import typing
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.metrics.cache import Cache
from lightning_modules.metrics.collectives import from_first, gather_in_order
from lightning_modules.metrics.contrastive import (
    MOST_IMAGES,
    RECIPE,
    ContrastiveExtractor,
    ContrastiveNetwork,
    train_contrastive,
)
from lightning_modules.metrics.distances import coverage, frechet_distance, kernel_distance
from lightning_modules.metrics.extractors import FeatureExtractor, load_inception
from lightning_modules.metrics.protocol import ExtractorKey, Protocol, Split, StatisticsKey
from lightning_modules.metrics.statistics import RealStatistics, evenly_spread, positioned_images, real_statistics


class ReferenceData(typing.Protocol):
    """What is asked of a data module."""

    in_channels: int
    image_size: int

    def evaluation_loader(self, split: Split) -> DataLoader:
        """Batches with `image` uint8 (n, C, H, W); process r of w has the images r, r + w, ... of the split."""

    def fingerprint(self, split: Split) -> str:
        """Changes with whatever changes an image of the split."""


class GenerationMetrics:
    """Measures of generated images, all from one pass of the feature extractor.

    - `fid_...`: Fréchet distance to all images of the reference split; 0 is best. Biased: it falls with the number of
      generated images, so only values of one number compare.
    - `kid_...`: kernel distance, unbiased: 0 is expected where the distributions are equal, and it may be negative.
    - `coverage_...`: fraction of real images that have a generated one in their neighbourhood. Falls where modes are
      dropped; about 0.97 is the best that is expected.

    The last two compare with as many real images as are generated; see `RealStatistics`.

    A plain object: the extractor's weights are in no checkpoint, optimiser or `parameters()`. Every process of a run
    must call every method, except `update`, in one order. No global random state is touched.

        metrics.prepare(datamodule, device)   # before each evaluation; works the first time only
        metrics.update(images, index)         # the generated images of this process, in any batches
        metrics.compute()                     # {"fid_contrastive_2000": ..., "kid_...": ..., "coverage_...": ...}
        metrics.reset()

    Args:
        protocol: Extractor, number of generated images and reference split.
        weights: File of Inception's weights; default: downloaded.
        cache_root: Folder of trained extractors and of statistics; default: `metrics` in $CONVSUITE_CACHE, else in
            ~/.cache/convsuite.

    Raises:
        ValueError: `weights` are given to an extractor that is trained here.
    """

    def __init__(
        self, protocol: Protocol, weights: str | Path | None = None, cache_root: str | Path | None = None
    ) -> None:
        if weights is not None and protocol.extractor != "inception":
            raise ValueError(f"extractor_weights are for extractor 'inception', not {protocol.extractor!r}")
        self.protocol = protocol
        self.weights = weights
        self.cache = Cache(cache_root)
        self._prepared_for: tuple | None = None
        self._extractor: FeatureExtractor | None = None
        self._real: RealStatistics | None = None
        self._image_shape = (0, 0, 0)
        self._device = torch.device("cpu")
        self.reset()

    def prepare(self, datamodule: ReferenceData, device: torch.device) -> None:
        """Make the extractor and the statistics of the real images ready, from the cache where they are in it.

        The first process trains an extractor, the features of real images are shared out between all.

        Raises:
            ModuleNotFoundError: Extractor "inception" without torch-fidelity; the message names what else can be done.
            OSError: The cache cannot be written, or weights are not to be had.
            ValueError: The images are too few or too small.
        """
        # Sums are float64, which Apple's GPUs do not know.
        device = torch.device("cpu") if device.type == "mps" else device
        fingerprint = datamodule.fingerprint(self.protocol.split)
        if self._prepared_for == (fingerprint, device):
            return
        self._device = device
        self._image_shape = (datamodule.in_channels, datamodule.image_size, datamodule.image_size)
        # Evaluations run in inference mode and perhaps under autocast, where a network is not trained as it should be.
        with isolate_rng(), torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            self._extractor = self._load_extractor(datamodule, fingerprint).to(device)
            self._real = self._load_statistics(datamodule, fingerprint, self._extractor)
        self._prepared_for = (fingerprint, device)

    def update(self, images: Tensor, index: Tensor) -> None:
        """Take in generated images of this process.

        Args:
            images: uint8 (n, C, H, W), as large as the real ones.
            index: int64 (n,); in the end every number from 0 to `num_generated` - 1 must have come once.
        """
        extractor, _ = self._prepared()
        if tuple(images.shape[1:]) != self._image_shape:
            raise ValueError(f"generated images are {tuple(images.shape[1:])}, the real ones {self._image_shape}")
        if len(images) != len(index):
            raise ValueError(f"{len(images)} images have {len(index)} indices")
        self._features.append(extractor(images.to(self._device)))
        self._index.append(index.to(self._device))

    def compute(self) -> dict[str, Tensor]:
        """The measures, float32 scalars under their names, equal in all processes.

        Raises:
            RuntimeError: Not every image was seen exactly once.
        """
        features = self._gathered()
        _, real = self._prepared()
        moments = features.double().mean(0), features.double().T.cov()
        values = {
            "fid": frechet_distance(*moments, real.mean, real.covariance),
            "kid": kernel_distance(features, real.features, real.similarity),
            "coverage": coverage(features, real.features, real.radii),
        }
        return {self.protocol.metric_name(measure): value.float() for measure, value in values.items()}

    def reset(self) -> None:
        """Forget the generated images; the real ones stay."""
        self._features: list[Tensor] = []
        self._index: list[Tensor] = []

    @property
    def num_real(self) -> int:
        """Number of real images in the reference of the Fréchet distance."""
        return int(self._prepared()[1].count)

    def _prepared(self) -> tuple[FeatureExtractor, RealStatistics]:
        if self._extractor is None or self._real is None:
            raise RuntimeError("call prepare(datamodule, device) before images are measured")
        return self._extractor, self._real

    def _gathered(self) -> Tensor:
        """Features of all generated images in the order of their indices, (num_generated, D)."""
        extractor, _ = self._prepared()
        no_features = torch.empty(0, extractor.num_features, device=self._device)
        no_index = torch.empty(0, dtype=torch.int64, device=self._device)
        features, index = gather_in_order(
            torch.cat([no_features, *self._features]), torch.cat([no_index, *self._index])
        )
        wanted = self.protocol.num_generated
        if not torch.equal(index, torch.arange(wanted, device=self._device)):
            raise RuntimeError(
                f"{self.protocol.metric_name('fid')} wants each of the generated images 0 to {wanted - 1} once; "
                f"got {len(index)}, {len(index.unique())} of them different"
            )
        return features

    def _load_extractor(self, datamodule: ReferenceData, fingerprint: str) -> FeatureExtractor:
        if self.protocol.extractor == "inception":
            return from_first(lambda: load_inception(self.weights))
        key = ExtractorKey(RECIPE, fingerprint, self.protocol.split, self._image_shape)
        with self.cache.locked("extractor", key):
            weights = from_first(lambda: self.cache.load("extractor", key))
            if weights is None:
                images = self._training_images(datamodule)
                weights = from_first(lambda: self._train(key, images))
        network = ContrastiveNetwork(datamodule.in_channels)
        network.load_state_dict(weights)
        return ContrastiveExtractor(network)

    def _training_images(self, datamodule: ReferenceData) -> Tensor:
        loader = datamodule.evaluation_loader(self.protocol.split)
        chosen = evenly_spread(MOST_IMAGES, len(loader.dataset))  # type: ignore[arg-type]
        images, places = [torch.empty(0, *self._image_shape, dtype=torch.uint8)], [chosen[:0]]
        for batch, positions in positioned_images(loader):
            is_chosen = torch.isin(positions, chosen)
            images.append(batch[is_chosen])
            places.append(positions[is_chosen])
        return gather_in_order(torch.cat(images).to(self._device), torch.cat(places).to(self._device))[0]

    def _train(self, key: ExtractorKey, images: Tensor) -> dict[str, Tensor]:
        rank_zero_info(f"training the feature extractor on {len(images)} real images, once for this data set")
        # On the CPU: on accelerators the same seed gives other weights, thus other distances.
        network = train_contrastive(images.cpu(), key.seed)
        self.cache.save("extractor", key, network.state_dict())
        return network.state_dict()

    def _load_statistics(
        self, datamodule: ReferenceData, fingerprint: str, extractor: FeatureExtractor
    ) -> RealStatistics:
        key = StatisticsKey(
            fingerprint=fingerprint,
            split=self.protocol.split,
            image_shape=self._image_shape,
            extractor=extractor.name,
            extractor_sha256=extractor.sha256,
            resize=extractor.resize,
            num_compared=self.protocol.num_generated,
        )
        with self.cache.locked("statistics", key):
            tensors = from_first(lambda: self.cache.load("statistics", key))
            if tensors is not None:
                return RealStatistics.from_tensors(tensors, self._device)
            loader = datamodule.evaluation_loader(self.protocol.split)
            statistics = real_statistics(extractor, loader, key.num_compared, self._device)
            from_first(lambda: self.cache.save("statistics", key, statistics.tensors()))
            return statistics
