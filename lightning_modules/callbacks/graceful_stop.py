"""Ctrl-C and a scheduler's signals end a training between two steps, with everything saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_modules.callbacks.checkpoints import save_last
from lightning_modules.callbacks.step_boundary import StepBoundary

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Stopped(SystemExit):
    """Training stopped on a signal; `how` says where it stands. The exit code is the shell's: 128 + signal."""

    def __init__(self, signum: int, how: str, code: int) -> None:
        super().__init__(code)
        self.how = f"{signal.Signals(signum).name}: {how}"


class GracefulStop(StepBoundary):
    """Leaves the training after the step during which a signal came: Ctrl-C, SIGTERM or SIGUSR1.

    The signal only sets a flag; at the next boundary all processes agree, `last.ckpt` is written and `Stopped` raised.
    A second Ctrl-C stops at once. Lightning's own handlers save from within the signal, or not at all.
    """

    def __init__(self) -> None:
        self._received = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._received = 0
        if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
            return
        for signum in SIGNALS:  # the Trainer puts back what was there before, when it is done
            signal.signal(signum, self._receive)

    def at_boundary(self, trainer: Trainer, epoch_ends: bool) -> None:
        signum = _agree(trainer, self._received)
        if signum:
            save_last(trainer)
            raise Stopped(signum, f"step {trainer.global_step} is done and saved", _exit_code(trainer, signum))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """A worker may end by the same signal: where it cannot know the sender, or has only just begun."""
        if self._received and _is_lost_worker(exception):
            how = "stopped without its loader's workers, back to the last checkpoint"
            raise Stopped(self._received, how, _exit_code(trainer, self._received))

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self._received and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = signum
        if hasattr(signal, "SIGCHLD"):
            # A worker that the same signal ended is no error now; torch would raise one in the middle of the step.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # No print: a signal may come in the middle of one.
        os.write(2, b"\nstopping after this step (Ctrl-C again: at once, back to the last checkpoint)\n")


def _is_lost_worker(exception: BaseException) -> bool:
    """Torch's own errors, or what reading from a worker raises that ends in the middle of sending a batch."""
    own = ("DataLoader worker", "Pin memory thread exited")  # the thread dies of what it reads from the worker
    return any(said in str(exception) for said in own) or isinstance(exception, (EOFError, ConnectionError))


def _exit_code(trainer: Trainer, signum: int) -> int:
    """0 on all processes but the first: a launcher kills that one when another ends with anything else."""
    return 128 + signum if trainer.is_global_zero else 0


def _agree(trainer: Trainer, received: int) -> int:
    """The signal that any of the processes has received, 0 for none."""
    if trainer.world_size == 1:
        return received
    numbers = torch.tensor(received, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(numbers, reduce_op="max"))
