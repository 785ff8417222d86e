"""How OC-GAN weights the high and the low frequencies of octave feature maps in the course of a training (Fig. 7)."""

from __future__ import annotations

from collections.abc import Callable

Betas = tuple[float, float]
"""(beta_H, beta_L), which multiply the high and the low maps after each octave layer (eq. 3)."""


def constant(t: float) -> Betas:
    """No weighting."""
    return 1.0, 1.0


def ramp(t: float) -> Betas:
    """Fig. 7a: high frequencies fade in as low ones fade out, beta_H = t and beta_L = 1 - t."""
    return t, 1.0 - t


def combination(t: float) -> Betas:
    """Fig. 7b as in the published code: beta_H = min(0.7, t + 0.2) up to t = 0.5 and 0.7 after; beta_L = 1 - beta_H."""
    high = min(0.7, t + 0.2) if t <= 0.5 else 0.7
    return high, 1.0 - high


BETA_SCHEDULES: dict[str, Callable[[float], Betas]] = {"constant": constant, "ramp": ramp, "combination": combination}
"""Name to the betas at t = (epoch + 1) / epochs, from just above 0 to 1."""
