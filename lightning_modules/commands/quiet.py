"""Leaves out what Lightning says that is no news here: advertisements, and warnings about what is meant so."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MEANT_SO = (
    r".*does not have many workers",  # data sets in memory
    r".*is smaller than the logging interval",
    r"You defined a `validation_step` but have no `val_dataloader`",  # val_size: 0
    r"Checkpoint directory .* exists and is not empty",  # a run that is resumed
    r"Be aware that when using `ckpt_path`",  # an evaluation needs fewer callbacks
    r"Using ModelCheckpoint with manual optimization",  # a step is over when it saves
    r"It is recommended to use `self.log\(.*sync_dist=True",  # metrics are reduced by the task
    r".*isinstance\(treespec, LeafSpec\)",
    r".*was deprecated in v4\.\d+\.\d+ and will be removed in v5",  # jsonargparse, as LightningCLI uses it
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence them within the block."""
    talker = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    talker.addFilter(_is_news)
    try:
        with warnings.catch_warnings():
            for message in MEANT_SO:
                warnings.filterwarnings("ignore", message=f"(?s){message}")
            yield
    finally:
        talker.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡 Tip", "TPU available"))
