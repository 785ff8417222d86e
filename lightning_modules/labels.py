"""What the classes of a run are called."""

from __future__ import annotations

from lightning.pytorch import Trainer


def class_names(trainer: Trainer, count: int) -> list[str]:
    """The names of the data's classes; their numbers, "0" to "count - 1", where the data name none."""
    names = getattr(trainer.datamodule, "class_names", None)  # type: ignore[attr-defined]
    return list(names) if names else [str(i) for i in range(count)]
