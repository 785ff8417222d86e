import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from lightning_modules.metrics.distances import (
    Moments,
    coverage,
    frechet_distance,
    kernel_distance,
    mean_similarity,
    neighbour_radii,
)


def normal(count: int, dimensions: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def frechet(first: Tensor, second: Tensor) -> float:
    first, second = first.double(), second.double()
    return float(frechet_distance(first.mean(0), first.T.cov(), second.mean(0), second.T.cov()))


def random_covariance(seed: int) -> Tensor:
    root = normal(6, seed=seed).double()
    return root @ root.T


# Fréchet distance


def test_frechet_distance_of_axis_aligned_gaussians():
    """|m1 - m2|^2 + sum of (s1 - s2)^2."""
    mean_1, mean_2 = torch.tensor([[1.0, 2.0, -3.0], [0.5, 2.0, 1.0]], dtype=torch.float64)
    std_1, std_2 = torch.tensor([[1.0, 0.1, 4.0], [2.0, 0.1, 1.0]], dtype=torch.float64)
    expected = (mean_1 - mean_2).square().sum() + (std_1 - std_2).square().sum()
    result = frechet_distance(mean_1, std_1.square().diag(), mean_2, std_2.square().diag())
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=0)


def test_frechet_distance_of_linear_maps():
    """A symmetric map A of N(0, C) is the optimal one: the distance is tr((A - 1) C (A - 1))."""
    covariance, optimal = random_covariance(1), random_covariance(2)
    zero = torch.zeros(6, dtype=torch.float64)
    shift = optimal - torch.eye(6)
    result = frechet_distance(zero, covariance, zero, optimal @ covariance @ optimal)
    torch.testing.assert_close(result, (shift @ covariance @ shift).trace(), rtol=1e-10, atol=0)


def test_frechet_distance_is_zero_of_equals_and_symmetric():
    first, second = normal(50), 1.5 * normal(60, seed=1) + 0.2
    assert frechet(first, first) == pytest.approx(0, abs=1e-10)
    assert frechet(first, second) == pytest.approx(frechet(second, first), rel=1e-12)


def test_frechet_distance_with_fewer_images_than_features():
    few = normal(4, dimensions=40)
    assert frechet(few, few) == pytest.approx(0, abs=1e-10)
    assert frechet(few, few + 0.5) == pytest.approx(40 * 0.25, rel=1e-9)
    assert frechet(few, torch.zeros(5, 40)) == pytest.approx(float(few.mean(0).square().sum() + few.T.cov().trace()))


class Flat(nn.Module):
    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def test_frechet_distance_is_that_of_torchmetrics():
    first, second = normal(50), 1.5 * normal(60, seed=1) + 0.2
    theirs = FrechetInceptionDistance(Flat(), normalize=False, input_img_size=(6, 1, 1)).set_dtype(torch.float64)
    for features, real in ((first, True), (second, False)):
        theirs.update(features.double()[:, :, None, None], real=real)
    assert frechet(first, second) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_moments_are_those_of_all_batches_together():
    features = 1e4 + normal(100)
    moments = Moments(6, torch.device("cpu"))
    for batch in features.split(17):
        moments.update(batch)
    assert moments.gather().count == 100
    torch.testing.assert_close(moments.mean, features.double().mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(moments.covariance, features.double().T.cov(), rtol=1e-11, atol=1e-13)


# Kernel distance


def naive_kernel_distance(first: Tensor, second: Tensor) -> float:
    def mean(left, right, *, same):
        values = [
            (float(x @ y) / len(x) + 1) ** 3
            for i, x in enumerate(left.double())
            for j, y in enumerate(right.double())
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    return mean(first, first, same=True) + mean(second, second, same=True) - 2 * mean(first, second, same=False)


def test_kernel_distance_is_the_unbiased_estimate(monkeypatch):
    monkeypatch.setattr("lightning_modules.metrics.distances._BLOCK", 4)
    first, second = normal(9), 0.5 + normal(11, seed=1)
    result = float(kernel_distance(first, second, mean_similarity(second)))
    assert result == pytest.approx(naive_kernel_distance(first, second), rel=1e-12)


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    distances = [
        float(kernel_distance(normal(20, seed=i), r := normal(30, seed=100 + i), mean_similarity(r))) for i in range(30)
    ]
    mean, error = torch.tensor(distances).mean(), torch.tensor(distances).std() / 30**0.5
    assert abs(mean) < 3 * error
    assert min(distances) < 0 < max(distances)


# Coverage


def test_coverage_counts_real_images_near_a_generated_one():
    real = torch.arange(12.0)[:, None]  # the 5th neighbour of the first is 5 away, of the 6th 3
    radii = neighbour_radii(real)
    assert radii[:6].tolist() == [5, 4, 3, 3, 3, 3]
    assert float(coverage(torch.tensor([[-4.5]]), real, radii)) == pytest.approx(1 / 12)
    assert float(coverage(torch.tensor([[-5.5]]), real, radii)) == 0
    assert float(coverage(torch.tensor([[0.0], [11.0]]), real, radii)) == pytest.approx(6 / 12)


@pytest.mark.parametrize("count", [100, 300])
def test_coverage_of_equal_distributions(count):
    """1 - 2^-5, whatever the number of images."""
    values = [coverage(normal(count, seed=i), r := normal(count, seed=50 + i), neighbour_radii(r)) for i in range(10)]
    assert float(torch.stack(values).mean()) == pytest.approx(1 - 2**-5, abs=0.012)


def test_coverage_falls_with_dropped_modes_and_ignores_strange_images():
    centres = 20 * torch.eye(6)[torch.arange(120) % 4]
    real, good = centres + normal(120), centres + normal(120, seed=1)
    radii = neighbour_radii(real)
    values = [float(coverage(good[torch.arange(120) % 4 < modes], real, radii)) for modes in (1, 2, 3, 4)]
    assert values == pytest.approx([0.25, 0.5, 0.75, 1], abs=0.1)
    strange = torch.cat([good, 1000 + normal(50)])
    assert float(coverage(strange, real, radii)) == values[-1]


def test_few_images_have_fewer_neighbours():
    real = normal(3)
    assert neighbour_radii(real).tolist() == pytest.approx(torch.cdist(real, real).amax(1).tolist(), rel=1e-5)
