"""The schedules of Fig. 7."""

from __future__ import annotations

import pytest

from lightning_modules.betas import BETA_SCHEDULES


@pytest.mark.parametrize(
    ("name", "t", "betas"),
    [
        ("constant", 0.3, (1.0, 1.0)),
        ("ramp", 0.02, (0.02, 0.98)),
        ("ramp", 1.0, (1.0, 0.0)),
        ("combination", 0.02, (0.22, 0.78)),
        ("combination", 0.5, (0.7, 0.3)),
        ("combination", 0.52, (0.7, 0.3)),
        ("combination", 1.0, (0.7, 0.3)),
    ],
)
def test_values(name, t, betas):
    assert BETA_SCHEDULES[name](t) == pytest.approx(betas)
