"""Peak memory of a step, the same way on every device."""

from __future__ import annotations

from benchmarks.timing import Step
from models.memory import PeakMemory


def peak_mib(step: Step) -> int:
    """The most tensors that are alive at once beside what was there before, in MiB."""
    with PeakMemory() as memory:
        step()
    return round(memory.peak / 2**20)
