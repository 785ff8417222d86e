"""Configurations by path, or by their name among those that come with the suite."""

from __future__ import annotations

import difflib
from pathlib import Path

PACKAGED = Path(__file__).resolve().parents[2] / "configs"


class UnknownConfigError(ValueError):
    """There is no such configuration; the message names the nearest."""


def packaged_configs() -> list[str]:
    """Sorted names of the configurations that come with the suite, relative to `configs/`."""
    return sorted(path.relative_to(PACKAGED).as_posix() for path in PACKAGED.rglob("*.yaml"))


def find_config(name: str) -> Path:
    """The file `name`, else the packaged configuration of that name (`configs/` before it may be there or not).

    Raises:
        UnknownConfigError: There is neither.
    """
    inside = name.removeprefix("./").removeprefix("configs/")
    for path in (Path(name), PACKAGED / inside):
        if path.is_file():
            return path
    known = packaged_configs()
    nearest = difflib.get_close_matches(inside, known, n=1, cutoff=0.3)
    hint = f" Did you mean {nearest[0]}?" if nearest else ""
    raise UnknownConfigError(f"there is no config file {name!r}, neither here nor among the packaged ones.{hint}")
