"""Losses of generative adversarial networks, as functions of the discriminator's logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GANLoss(NamedTuple):
    """What the discriminator and the generator minimise; logits are (n,), losses means over the samples.

    Attributes:
        discriminator: Of the logits of real and of generated images.
        generator: Of the logits of generated images.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


def dcgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Binary cross-entropy, -log D(x) - log(1 - D(G(z))) with D the logistic function of the logit (eq. 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def dcgan_generator(fake: Tensor) -> Tensor:
    """The non-saturating form, -log D(G(z))."""
    return F.softplus(-fake).mean()


def lsgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Least squares, (D(x) - 1)^2 + D(G(z))^2."""
    return (real - 1).square().mean() + fake.square().mean()


def lsgan_generator(fake: Tensor) -> Tensor:
    """Least squares, (D(G(z)) - 1)^2."""
    return (fake - 1).square().mean()


def wgan_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """The negative estimate of the Wasserstein distance, D(G(z)) - D(x), for a critic that is Lipschitz."""
    return fake.mean() - real.mean()


def wgan_generator(fake: Tensor) -> Tensor:
    """-D(G(z))."""
    return -fake.mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z)))."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


GAN_LOSSES = {
    "dcgan": GANLoss(dcgan_discriminator, dcgan_generator),
    "lsgan": GANLoss(lsgan_discriminator, lsgan_generator),
    "wgan": GANLoss(wgan_discriminator, wgan_generator),
    "wgan_gp": GANLoss(wgan_discriminator, wgan_generator),
    "hinge": GANLoss(hinge_discriminator, wgan_generator),
}


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """WGAN-GP's penalty: the mean of (|gradient of D(x)| - 1)^2 at x = mix * real + (1 - mix) * fake.

    Outside of autocast, in the precision of the discriminator's parameters. Batch norm in the discriminator, which the
    WGAN-GP paper leaves out, makes every gradient that of the whole batch's logits.

    Args:
        discriminator: Maps images to logits (n,).
        real: Images (n, C, H, W).
        fake: Images (n, C, H, W).
        mix: Uniform in [0, 1], (n, 1, 1, 1).
    """
    dtype = next(discriminator.parameters()).dtype
    with torch.autocast(real.device.type, enabled=False):
        between = torch.lerp(fake.to(dtype), real.to(dtype), mix.to(dtype)).requires_grad_()
        logits = discriminator(between)
        (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()
