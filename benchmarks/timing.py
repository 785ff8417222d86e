"""Timing side by side: contenders take turns, so that what a machine does over time touches all of them alike."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Step = Callable[[], object]

SHORTEST_SAMPLE_MS = 2.0
FEWEST_ROUNDS = 7


@dataclass(frozen=True)
class Timings:
    """Milliseconds a call of every contender, one sample a round; sample i of all contenders are neighbours in time."""

    samples: Mapping[str, list[float]]

    def median_ms(self, name: str) -> float:
        """The median time of a call."""
        return statistics.median(self.samples[name])

    def ratio(self, name: str, to: str) -> float:
        """The median over rounds of the time of `name` divided by that of `to`."""
        return statistics.median(a / b for a, b in zip(self.samples[name], self.samples[to], strict=True))


def take_turns(steps: Mapping[str, Step], *, seconds: float, device: torch.device) -> Timings:
    """Time `steps` in rounds, A B ... then ... B A, for about `seconds` in total and seven rounds at least.

    A sample is the mean over as many calls as fill two milliseconds.
    """
    loops = {name: _calls_a_sample(step, device) for name, step in steps.items()}
    samples: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples[order[0]]) < FEWEST_ROUNDS:
            for name in order:
                samples[name].append(_time_ms(steps[name], loops[name], device))
            order.reverse()
    finally:
        gc.enable()
    return Timings(samples)


def _calls_a_sample(step: Step, device: torch.device) -> int:
    for _ in range(2):  # the first calls allocate and choose algorithms
        once = _time_ms(step, 1, device)
    return max(1, round(SHORTEST_SAMPLE_MS / once))


def _time_ms(step: Step, calls: int, device: torch.device) -> float:
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
    _wait_for(device)
    return (time.perf_counter() - start) / calls * 1e3


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """What the times depend on: processor or GPU, threads, versions, and how busy the machine was at the start."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
