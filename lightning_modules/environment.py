"""What a run ran with: versions, source, hardware. Kept beside its results, so that a number can be explained."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning_modules.files import write_whole
from lightning_modules.runs import Run

PACKAGES = (
    "convsuite",
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "jsonargparse",
    "wandb",
    "numpy",
)


def describe_environment() -> dict[str, Any]:
    """Time, versions, source and machine, as plain data."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": _git_state(Path(__file__).resolve().parents[1]),
        "hardware": _hardware(),
    }


def append_session(run: Run, session: dict[str, Any]) -> None:
    """Add `session` to environment.json, or bring it up to date if it is there already (by its `started`)."""
    others = [old for old in run.sessions if old["started"] != session["started"]]
    write_whole(run.environment_file, json.dumps({"sessions": [*others, session]}, indent=2).encode() + b"\n")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state(source: Path) -> dict[str, Any]:
    """Commit of the suite's own checkout, and whether files differ from it; an installed package has none."""
    if _git(source, "rev-parse", "--show-toplevel") != str(source):
        return {"commit": None, "dirty": None}
    return {"commit": _git(source, "rev-parse", "HEAD"), "dirty": _git(source, "status", "--porcelain") != ""}


def _git(source: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", source, *command], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
