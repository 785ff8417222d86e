"""Learning-rate schedules of the papers, stepped once per optimiser step."""

from __future__ import annotations

import math
from typing import Literal, get_args

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

Reading = Literal["usual", "printed"]


class CosineDecay(LRScheduler):
    r"""The cosine decay of the Gaussian derivative paper, in both readings; k counts optimiser steps.

    - "usual": lr_k = lr_0 (alpha + (1 - alpha) (1 + cos(pi min(k, K_max) / K_max)) / 2), from lr_0 down to alpha lr_0;
    - "printed": lr_k = lr_0 (alpha + (1 - alpha) (1 + cos(2 pi min(k, K_max) / K_max))), as the paper has it, which
      starts near 2 lr_0, touches alpha lr_0 halfway and climbs back.

    Args:
        optimizer: The wrapped optimiser.
        total_steps: K_max; None is filled in by the task with the number of steps of the whole fit.
        alpha: Share of lr_0 that is left at the lowest point.
        reading: "usual" or "printed".

    Raises:
        ValueError: alpha outside [0, 1], an unknown reading, total_steps below 1.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int | None = None, alpha: float = 0.0, reading: Reading = "usual"
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
        if reading not in get_args(Reading):
            raise ValueError(f"reading must be one of {get_args(Reading)}, got {reading!r}")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be 1 or more, got {total_steps}")
        self.total_steps = total_steps
        self.alpha = alpha
        self.reading = reading
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The learning rate at `step` as a share of lr_0."""
        progress = 0.0 if self.total_steps is None else min(step, self.total_steps) / self.total_steps
        if self.reading == "printed":
            return self.alpha + (1 - self.alpha) * (1 + math.cos(2 * math.pi * progress))
        return self.alpha + (1 - self.alpha) * (1 + math.cos(math.pi * progress)) / 2

    def get_lr(self) -> list[float | Tensor]:
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]


class StepDecay(LRScheduler):
    """The staircase of ImageNet trainings: lr_0 factor^floor(e / every_epochs), e = floor(k / steps_an_epoch).

    k counts optimiser steps and e epochs, both from 0. The defaults are those of Stacked U-Nets (appendix A): a tenth
    every 30 epochs.

    Args:
        optimizer: The wrapped optimiser.
        every_epochs: Epochs at one rate.
        factor: What the rate is multiplied by after them.
        steps_an_epoch: Optimiser steps of an epoch; None is filled in by the task, which knows the data and how many
            batches are accumulated for a step.

    Raises:
        ValueError: `every_epochs` or `steps_an_epoch` below 1, a `factor` that is not in (0, 1].
    """

    def __init__(
        self, optimizer: Optimizer, every_epochs: int = 30, factor: float = 0.1, steps_an_epoch: int | None = None
    ) -> None:
        if every_epochs < 1:
            raise ValueError(f"every_epochs must be 1 or more, got {every_epochs}")
        if not 0 < factor <= 1:
            raise ValueError(f"factor must be above 0 and at most 1, got {factor}")
        if steps_an_epoch is not None and steps_an_epoch < 1:
            raise ValueError(f"steps_an_epoch must be 1 or more, got {steps_an_epoch}")
        self.every_epochs = every_epochs
        self.factor = factor
        self.steps_an_epoch = steps_an_epoch
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        epoch = 0 if self.steps_an_epoch is None else self.last_epoch // self.steps_an_epoch
        return [base * self.factor ** (epoch // self.every_epochs) for base in self.base_lrs]
