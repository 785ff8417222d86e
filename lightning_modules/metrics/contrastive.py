"""The extractor `contrastive`: a small network, trained without labels on the real images at hand.

Recipe 1. Four convolutions of stride 2 (3x3, batch norm, leaky ReLU) with 32, 64, 128 and 128 maps; linear readings of
the last three, averaged over 2x2, 2x2 and 4x4 cells before: 32 + 32 + 64 = 128 features that see texture, parts and
layout. They are trained as in SimCLR (Chen et al. 2020): two random views of an image (crop, mirroring, light changes
of brightness, contrast and saturation) are to be told from the views of the other images of the batch, by the
normalised, temperature-scaled cross entropy (temperature 0.2) behind a projection that is thrown away.

That alone would allow features that are blind to what generators do wrong. So every image also gives a corrupted view,
which must not look like any clean one: blurred, noisy, with patches in wrong places, or two images mixed (negative data
augmentation, Sinha et al. 2021). A penalty keeps features from being copies of each other, as in VICReg (Bardes et al.
2022). At last every feature is shifted and scaled to mean 0 and standard deviation 1 over the training images, and an
image's features to length sqrt(128): distances stay bounded, however strange an image is.

Training: at most 5,000 images, evenly spread over the split; batches of 128; 6 epochs, but at least 32 steps; AdamW
(one cycle up to 2e-3), bfloat16 autocast, one thread. Takes about 90 seconds of a core with AVX-512 for 5,000 images of
64x64 pixels.

The distance compares generators of one data set. It is no Fréchet *inception* distance: beside numbers of other data,
or of another training of the extractor, it means nothing. A `train_size` or `val_size` draws other images for every
seed, hence other extractors: compare seeds on the whole split.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, conv2d, cross_entropy, grid_sample, normalize, pad

from lightning_modules.metrics.extractors import FeatureExtractor

RECIPE = "contrastive, recipe 1"
"""Changes with whatever is trained: extractors of other recipes are not found in the cache."""
MOST_IMAGES = 5000
LEAST_SIZE = 16

_EPOCHS = 6
_LEAST_STEPS = 32
_BATCH_SIZE = 128
_LEARNING_RATE = 2e-3
_TEMPERATURE = 0.2
_DECORRELATION = 0.1  # weight of the penalty
_LEAST_CROP = 0.7  # of the side
_JITTER = 0.2  # of brightness, contrast and saturation


class ContrastiveNetwork(nn.Module):
    """Images (N, in_channels, H, W) in [-1, 1], of 16 pixels or more, to features (N, 128)."""

    num_features = 128
    # Of every stage: maps, features that are read from them, cells of the grid over which they are averaged before.
    stages_and_readings = ((32, 0, 0), (64, 32, 2), (128, 32, 2), (128, 64, 4))

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        self.readings = nn.ModuleList()
        for width, count, cells in self.stages_and_readings:
            convolution = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
            self.stages.append(nn.Sequential(convolution, nn.BatchNorm2d(width), nn.LeakyReLU(0.1)))
            pool = nn.Sequential(nn.AdaptiveAvgPool2d(cells), nn.Flatten())
            self.readings.append(pool.append(nn.Linear(width * cells**2, count)) if count else nn.Identity())
            in_channels = width
        self.standardise = nn.BatchNorm1d(self.num_features, affine=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features of mean 0 and standard deviation 1: of the batch in training, of the training images after it."""
        return self.standardise(self.read(images))

    def read(self, images: Tensor) -> Tensor:
        """Features as the stages give them, float32."""
        features = []
        for stage, reading in zip(self.stages, self.readings, strict=True):
            images = stage(images)
            if not isinstance(reading, nn.Identity):
                features.append(reading(images))
        return torch.cat(features, 1).float()


class ContrastiveExtractor(FeatureExtractor):
    """128 features of a trained `ContrastiveNetwork`, scaled to length sqrt(128)."""

    name = "contrastive"
    num_features = ContrastiveNetwork.num_features
    resize = "none"

    def features(self, images: Tensor) -> Tensor:
        channels = self.network.stages[0][0].in_channels  # type: ignore[index, union-attr]
        if images.shape[1] != channels:
            raise ValueError(
                f"extractor 'contrastive' was trained on {channels} channels, got images of {images.shape[1]}"
            )
        return normalize(self.network(_spread(images))) * math.sqrt(self.num_features)


@torch.inference_mode(False)
@torch.enable_grad()
def train_contrastive(images: Tensor, seed: int = 0) -> ContrastiveNetwork:
    """The network for data like `images`, trained on their device. Seeds the global generator.

    Args:
        images: uint8 (N, C, H, W), at least 2, of at least 16 pixels.
        seed: Of the initial weights and of what is drawn. Equal seeds give equal weights on one kind of processor.

    Raises:
        ValueError: There are too few images, or they are too small.
    """
    if len(images) < 2 or min(images.shape[2:]) < LEAST_SIZE:
        raise ValueError(
            f"extractor 'contrastive' is trained on 2 images or more of {LEAST_SIZE} pixels or more, "
            f"got {tuple(images.shape)}"
        )
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = ContrastiveNetwork(images.shape[1]).to(memory_format=torch.channels_last).to(images.device)
    projection = _projection().to(images.device)
    parameters = [*network.parameters(), *projection.parameters()]
    batches = list(_batches(len(images), generator))
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=len(batches), pct_start=0.2)
    with _one_thread():
        for batch in batches:
            loss = _loss(network, projection, _spread(images[batch.to(images.device)]), generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        _standardise(network.eval(), images)
    return network


def random_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) in [-1, 1], each cropped, mirrored or not, and with slightly other colours."""
    n, device = len(images), images.device
    side = _uniform(n, _LEAST_CROP, 1, generator)
    mirrored = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    maps = torch.zeros(n, 2, 3)
    maps[:, 0, 0], maps[:, 1, 1] = side * mirrored, side
    maps[:, :, 2] = (1 - side)[:, None] * _uniform((n, 2), -1, 1, generator)
    grid = affine_grid(maps.to(device), list(images.shape), align_corners=False)
    images = grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    brightness = _uniform((n, 1, 1, 1), -_JITTER, _JITTER, generator).to(device)
    contrast, saturation = _uniform((2, n, 1, 1, 1), 1 - _JITTER, 1 + _JITTER, generator).to(device)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * saturation
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * contrast + brightness


def corrupted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) in [-1, 1], a quarter each blurred, noisy, with swapped patches, and mixed with another."""
    kinds = (_blurred, _noisy, _with_swapped_patches, _mixed)
    parts = images.chunk(len(kinds))  # fewer than four, where images are
    return torch.cat([kind(part, generator) for kind, part in zip(kinds, parts, strict=False)])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several would add in another order, and give other weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _projection() -> nn.Module:
    width = ContrastiveNetwork.num_features
    return nn.Sequential(nn.Linear(width, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 64))


def _batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    size = min(count, _BATCH_SIZE)
    steps = max(_LEAST_STEPS, _EPOCHS * (count // size))
    while steps > 0:
        order = torch.randperm(count, generator=generator)
        for batch in order.split(size)[: min(steps, count // size)]:
            yield batch
            steps -= 1


def _loss(network: nn.Module, projection: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
    n = len(images)
    views = [random_views(images, generator) for _ in range(3)]
    views[2] = corrupted(views[2], generator)
    stacked = torch.cat(views).contiguous(memory_format=torch.channels_last)
    # Within another autocast context the cache would hold the first step's weights for ever.
    with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
        features = network(stacked)
    embedded = normalize(projection(features))
    similarity = embedded[: 2 * n] @ embedded.T / _TEMPERATURE
    clean = torch.arange(2 * n, device=images.device)
    similarity = similarity.masked_fill(clean[:, None] == torch.arange(3 * n, device=images.device), -torch.inf)
    return cross_entropy(similarity, clean.roll(n)) + _DECORRELATION * _redundancy(features[: 2 * n])


def _redundancy(features: Tensor) -> Tensor:
    """Squared correlations of different features, summed, per feature."""
    features = (features - features.mean(0)) / (features.std(0) + 1e-4)
    correlation = features.T @ features / (len(features) - 1)
    return (correlation.square().sum() - correlation.diagonal().square().sum()) / len(correlation)


@torch.no_grad()
def _standardise(network: ContrastiveNetwork, images: Tensor) -> None:
    features = torch.cat([network.read(_spread(part)) for part in images.split(_BATCH_SIZE)]).double()
    network.standardise.running_mean.copy_(features.mean(0))  # type: ignore[union-attr]
    network.standardise.running_var.copy_(features.var(0))  # type: ignore[union-attr]


def _spread(images: Tensor) -> Tensor:
    return images.to(torch.float32, memory_format=torch.channels_last) / 127.5 - 1


def _uniform(shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _log_uniform(shape: int | tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return _uniform(shape, math.log(low), math.log(high), generator).exp()


def _blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """All by one Gaussian of a standard deviation between 0.5 pixels and a 24th of the image."""
    sigma = float(_log_uniform(1, 0.5, max(images.shape[2:]) / 24, generator))
    radius = math.ceil(3 * sigma)
    taps = torch.exp(-torch.arange(-radius, radius + 1.0, device=images.device).square() / (2 * sigma**2))
    channels = images.shape[1]
    row = (taps / taps.sum()).expand(channels, 1, 1, -1)
    padded = pad(images, (radius, radius, radius, radius), mode="reflect")
    return conv2d(conv2d(padded, row, groups=channels), row.mT, groups=channels)


def _noisy(images: Tensor, generator: torch.Generator) -> Tensor:
    deviation = _log_uniform((len(images), 1, 1, 1), 0.04, 0.6, generator)
    return images + (deviation * torch.randn(images.shape, generator=generator)).to(images.device)


def _with_swapped_patches(images: Tensor, generator: torch.Generator) -> Tensor:
    """Some patches of a grid of 4x4 or 8x8 take each other's places; a border that fills no patch stays."""
    cells = 4 if float(torch.rand(1, generator=generator)) < 0.5 else 8
    moved = int(torch.randint(2, cells**2, (1,), generator=generator))
    places = torch.arange(cells**2).repeat(len(images), 1)
    chosen = torch.rand(places.shape, generator=generator).argsort(1)[:, :moved]
    places.scatter_(1, chosen, chosen.roll(1, 1))
    height, width = (size // cells for size in images.shape[2:])
    inside = images[:, :, : cells * height, : cells * width]
    patches = inside.unflatten(2, (cells, height)).unflatten(4, (cells, width)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    rows = torch.arange(len(images), device=images.device)[:, None]
    patches = patches[rows, places.to(images.device)].unflatten(1, (cells, cells)).permute(0, 3, 1, 4, 2, 5)
    result = images.clone()
    result[:, :, : cells * height, : cells * width] = patches.flatten(4, 5).flatten(2, 3)
    return result


def _mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """With the next image: half of them left half beside right half, the others averaged."""
    others = images.roll(1, 0)
    share = _uniform((len(images), 1, 1, 1), 0.3, 0.7, generator).to(images.device)
    averaged = images * share + others * (1 - share)
    is_left = torch.arange(images.shape[3], device=images.device) < images.shape[3] // 2
    stitched = torch.where(is_left, images, others)
    is_stitched = torch.rand((len(images), 1, 1, 1), generator=generator) < 0.5
    return torch.where(is_stitched.to(images.device), stitched, averaged)
