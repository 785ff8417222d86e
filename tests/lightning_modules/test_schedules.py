"""The cosine decay of the Gaussian derivative paper, step by step against the printed formulas."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.schedules import CosineDecay


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reading", ["usual", "printed"])
def test_every_step_equals_the_formula(reading, alpha):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = CosineDecay(optimizer, total_steps=20, alpha=alpha, reading=reading)
    for k in range(25):
        share = min(k, 20) / 20
        if reading == "usual":
            expected = 0.5 * (alpha + (1 - alpha) * 0.5 * (1 + math.cos(math.pi * share)))
        else:
            expected = 0.5 * (alpha + (1 - alpha) * (1 + math.cos(2 * math.pi * share)))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"alpha": 1.5}, "alpha"), ({"reading": "other"}, "reading"), ({"total_steps": 0}, "total")],
)
def test_impossible_schedules(options, message):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    with pytest.raises(ValueError, match=message):
        CosineDecay(optimizer, **options)
