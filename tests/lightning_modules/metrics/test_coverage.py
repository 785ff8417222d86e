"""How much of a volume patches have shown."""

import numpy as np
import pytest
import torch

from lightning_modules.metrics.coverage import Coverage


@pytest.mark.parametrize("size", [(12, 64), (16, 7, 11)])
def test_small_volumes_are_measured_exactly(size):
    numbers, coverage = np.random.default_rng(0), Coverage()
    seen = np.zeros(size, bool)
    for _ in range(4):
        start = [int(numbers.integers(0, side - 3)) for side in size]
        coverage.add(5, start, [4] * len(size), size)
        seen[tuple(slice(first, first + 4) for first in start)] = True
    assert coverage.share(1) == seen.mean()
    assert coverage.share(4) == seen.mean() / 4
    assert coverage.subjects() == 1


def test_large_volumes_are_measured_in_cells():
    coverage = Coverage()
    coverage.add(0, (0, 0, 0), (120, 70, 155), (240, 240, 155))
    assert coverage.share(1) == pytest.approx(120 * 70 / 240**2, abs=0.03)
    coverage.add(0, (0, 0, 0), (240, 240, 155), (240, 240, 155))
    assert coverage.share(1) == 1


def test_a_patch_larger_than_the_volume_covers_it():
    coverage = Coverage()
    coverage.add(0, (-2, 3), (8, 2), (5, 6))
    assert coverage.share(1) == pytest.approx(2 / 6)


def test_it_goes_on_from_its_state():
    coverage, again = Coverage(), Coverage()
    coverage.add(0, (0, 0), (3, 5), (9, 7))
    coverage.add(3, (1, 1), (3, 5), (50, 70))
    again.load(coverage.state())
    for one in (coverage, again):
        one.add(3, (20, 20), (9, 9), (50, 70))
    assert again.share(2) == coverage.share(2)
    assert all(saved["bits"].dtype == torch.uint8 for saved in again.state().values())
