"""GAN losses against their formulas, worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_modules.losses.gan import GAN_LOSSES, gradient_penalty

REAL, FAKE = torch.tensor([0.5, -1.0]), torch.tensor([2.0, -0.5])


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


EXPECTED = {
    "dcgan": (
        -(log_sigmoid(0.5) + log_sigmoid(-1.0)) / 2 - (log_sigmoid(-2.0) + log_sigmoid(0.5)) / 2,
        -(log_sigmoid(2.0) + log_sigmoid(-0.5)) / 2,
    ),
    "lsgan": ((0.25 + 4.0) / 2 + (4.0 + 0.25) / 2, (1.0 + 2.25) / 2),
    "wgan": (0.75 - -0.25, -0.75),
    "wgan_gp": (0.75 - -0.25, -0.75),
    "hinge": ((0.5 + 2.0) / 2 + (3.0 + 0.5) / 2, -0.75),
}


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_values(name):
    discriminator, generator = EXPECTED[name]
    assert GAN_LOSSES[name].discriminator(REAL, FAKE).item() == pytest.approx(discriminator)
    assert GAN_LOSSES[name].generator(FAKE).item() == pytest.approx(generator)


@pytest.mark.parametrize("name", GAN_LOSSES)
def test_a_confident_discriminator_stays_finite(name):
    losses = GAN_LOSSES[name]
    logits = torch.tensor([1e4], requires_grad=True)
    for loss in (losses.discriminator(logits, logits), losses.generator(-logits)):
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradient_penalty_of_a_linear_critic_is_that_of_its_weight(dtype):
    critic = nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0))
    real, fake = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
        penalty = gradient_penalty(critic, real, fake, torch.rand(4, 1, 1, 1))
    penalty.backward()
    weight = critic[1].weight
    assert penalty.item() == pytest.approx((weight.norm().item() - 1) ** 2, rel=1e-5)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * (weight.norm() - 1) * weight.detach() / weight.norm().detach())
