"""Distances between two sets of features, in float64; none of them draws random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.metrics.collectives import gather_rows

NEIGHBOURS = 5
"""k of `coverage`, as published."""
_BLOCK = 1024  # rows of a matrix of pairs that are in memory at once


class Moments:
    """Mean and covariance of features that pass by in batches, over all processes.

    Batches are merged as Chan, Golub and LeVeque (1979) do, which does not cancel where means are large.

    Args:
        num_features: D.
        device: Of the features.
    """

    def __init__(self, num_features: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64, device=device)
        # Sum of (x - mean)(x - mean)^T.
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Take in features (n, D), n at least 1."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        self._merge(len(features), mean, centred.T @ centred)

    def gather(self) -> Moments:
        """Those of all processes together, equal on all of them."""
        counts = gather_rows(torch.tensor([self.count], device=self.mean.device))
        total = Moments(len(self.mean), self.mean.device)
        for part in zip(counts.tolist(), gather_rows(self.mean[None]), gather_rows(self.scatter[None]), strict=True):
            total._merge(*part)
        return total

    @property
    def covariance(self) -> Tensor:
        """Unbiased, (D, D)."""
        return self.scatter / (self.count - 1)

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if not count:  # a process without images
            return
        total = self.count + count
        difference = mean - self.mean
        self.mean = self.mean + difference * (count / total)
        self.scatter = self.scatter + scatter + torch.outer(difference, difference) * (self.count * count / total)
        self.count = total


def frechet_distance(mean_1: Tensor, covariance_1: Tensor, mean_2: Tensor, covariance_2: Tensor) -> Tensor:
    """Squared Fréchet distance of two Gaussians (Dowson and Landau 1982; FID: Heusel et al. 2017), a scalar.

        |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)),   tr (C1 C2)^(1/2) = |C1^(1/2) C2^(1/2)|_nuclear

    The nuclear norm is symmetric in both, and stays exact where a covariance is singular (fewer images than features).

    Args:
        mean_1: float64 (D,).
        covariance_1: float64 (D, D), symmetric, positive semi-definite up to rounding.
        mean_2: float64 (D,).
        covariance_2: float64 (D, D).
    """
    product = _square_root(covariance_1) @ _square_root(covariance_2)
    overlap = torch.linalg.svdvals(product).sum()
    distance = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * overlap
    return distance.clamp(min=0)  # what rounding leaves of equal ones


def kernel_distance(generated: Tensor, real: Tensor, real_similarity: Tensor | None = None) -> Tensor:
    """Squared maximum mean discrepancy with the kernel (x y / D + 1)^3 (KID: Bińkowski et al. 2018), a scalar.

    The unbiased estimate over all pairs, without subsets: 0 is expected for equal distributions, whatever the numbers
    of images, and it may be negative.

    Args:
        generated: Features (n, D).
        real: Features (m, D).
        real_similarity: `mean_similarity(real)`, where it is known.
    """
    across = _kernel_sum(generated, real) / (len(generated) * len(real))
    within = mean_similarity(real) if real_similarity is None else real_similarity
    return mean_similarity(generated) + within - 2 * across


def mean_similarity(features: Tensor) -> Tensor:
    """Mean of the kernel over all pairs of different rows of (n, D), a scalar."""
    n = len(features)
    own = _kernel(features.double().square().sum(1) / features.shape[1]).sum()
    return (_kernel_sum(features, features) - own) / (n * (n - 1))


def neighbour_radii(real: Tensor) -> Tensor:
    """Distance of every row of (m, D) to its k-th nearest other row, float64 (m,), with k = 5 (or m - 1, if less)."""
    k = min(NEIGHBOURS, len(real) - 1)
    real = real.double()
    # The nearest row is the row itself. Not kthvalue: it has no deterministic form on GPUs.
    nearest = [torch.cdist(rows, real).topk(k + 1, largest=False).values for rows in real.split(_BLOCK)]
    return torch.cat(nearest).amax(1)


def coverage(generated: Tensor, real: Tensor, radii: Tensor) -> Tensor:
    """Fraction of real images that have a generated one nearer than their k-th real neighbour (Naeem et al. 2020).

    A mode that the generator drops lowers it; images without likeness to real ones do not raise it. For two samples of
    m images of one distribution about 1 - 2^-k is expected, 0.97, for any m.

    Args:
        generated: Features (n, D).
        real: Features (m, D).
        radii: `neighbour_radii(real)`.
    """
    generated = generated.double()
    nearest = [torch.cdist(rows, generated).amin(1) for rows in real.double().split(_BLOCK)]
    return (torch.cat(nearest) < radii).double().mean()


def _square_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _kernel(products: Tensor) -> Tensor:
    return (products + 1) ** 3


def _kernel_sum(left: Tensor, right: Tensor) -> Tensor:
    right = right.double().T / left.shape[1]
    return torch.stack([_kernel(rows.double() @ right).sum() for rows in left.split(_BLOCK)]).sum()
