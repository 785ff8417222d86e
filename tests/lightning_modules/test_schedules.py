"""Learning-rate schedules, step by step against the printed formulas."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_modules.schedules import CosineDecay, StepDecay


def one_rate(lr: float = 0.5) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reading", ["usual", "printed"])
def test_every_step_equals_the_formula(reading, alpha):
    optimizer = one_rate()
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
    with pytest.raises(ValueError, match=message):
        CosineDecay(one_rate(), **options)


def test_the_cosine_of_stacked_unets():
    """Its defaults: 0.5 (1 + cos(pi iteration / iterations)), down to 0."""
    optimizer = one_rate(2e-4)
    schedule = CosineDecay(optimizer, total_steps=8)
    for k in range(9):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-4 * 0.5 * (1 + math.cos(math.pi * k / 8)), abs=1e-12)
        optimizer.step()
        schedule.step()


def test_every_step_of_the_staircase():
    optimizer = one_rate()
    schedule = StepDecay(optimizer, every_epochs=2, factor=0.1, steps_an_epoch=3)
    for k in range(20):
        epoch = k // 3
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.1 ** (epoch // 2))
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_epochs": 0}, "every_epochs must be 1 or more, got 0"),
        ({"factor": 0.0}, "factor must be above 0 and at most 1"),
        ({"factor": 10.0}, "factor must be above 0 and at most 1"),
        ({"steps_an_epoch": 0}, "steps_an_epoch must be 1 or more"),
    ],
)
def test_impossible_staircases(options, message):
    with pytest.raises(ValueError, match=message):
        StepDecay(one_rate(), **options)
