"""What is known of the real images: computed once over a whole split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.metrics.collectives import gather_in_order, process_place
from lightning_modules.metrics.distances import Moments, mean_similarity, neighbour_radii
from lightning_modules.metrics.extractors import FeatureExtractor


@dataclass(frozen=True)
class RealStatistics:
    """Statistics of the features of real images.

    The Fréchet distance uses the mean and covariance of all of them. The other measures compare images one by one; for
    these as many real images are kept as are generated, evenly spread over the split (all, where it has fewer).

    Args:
        count: Number of real images, int64 scalar.
        mean: float64 (D,).
        covariance: float64 (D, D).
        features: Of the images that are kept, float32 (m, D).
        radii: Their `neighbour_radii`, float64 (m,).
        similarity: Their `mean_similarity`, float64 scalar.
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor
    features: Tensor
    radii: Tensor
    similarity: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], device: torch.device) -> RealStatistics:
        return cls(**{name: value.to(device) for name, value in tensors.items()})


def evenly_spread(count: int, length: int) -> Tensor:
    """`min(count, length)` different positions in a sequence of that length, rising, int64."""
    count = min(count, length)
    return torch.arange(count) * length // count


def positioned_images(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of this process: images uint8 (n, C, H, W), and their positions int64 (n,) in evaluation order.

    Process r of w has the images r, r + w, r + 2w, ... of the loader's data set, as `evaluation_loader` promises.
    """
    world, rank = process_place()
    seen = 0
    for batch in loader:
        images = batch["image"]
        yield images, rank + world * torch.arange(seen, seen + len(images))
        seen += len(images)


def real_statistics(
    extractor: FeatureExtractor, loader: DataLoader, num_compared: int, device: torch.device
) -> RealStatistics:
    """The statistics of all images of `loader`, in float64; every process of the run must call this.

    Args:
        extractor: On `device`.
        loader: The data module's `evaluation_loader` of the split.
        num_compared: Images that are kept one by one.
        device: Where features are computed.

    Raises:
        ValueError: There are fewer than two images.
        RuntimeError: The loader does not give every image of its data set once.
    """
    length = len(loader.dataset)  # type: ignore[arg-type]
    if length < 2:
        raise ValueError(
            f"the reference split holds {length} image(s), and one has no covariance: choose another split"
        )
    chosen = evenly_spread(num_compared, length)
    moments = Moments(extractor.num_features, device)
    kept, kept_positions = [torch.empty(0, extractor.num_features, device=device)], [chosen[:0]]
    for images, positions in positioned_images(loader):
        features = extractor(images.to(device))
        moments.update(features)
        is_chosen = torch.isin(positions, chosen)
        kept.append(features[is_chosen.to(device)])
        kept_positions.append(positions[is_chosen])
    moments = moments.gather()
    features, positions = gather_in_order(torch.cat(kept), torch.cat(kept_positions).to(device))
    if moments.count != length or not torch.equal(positions.cpu(), chosen):
        raise RuntimeError(f"the evaluation loader gave {moments.count} images of {length}")
    return RealStatistics(
        count=torch.tensor(length, device=device),
        mean=moments.mean,
        covariance=moments.covariance,
        features=features,
        radii=neighbour_radii(features),
        similarity=mean_similarity(features),
    )
