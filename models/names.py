"""Names and patterns of names; one error for every mistyped one, which offers the nearest and lists the rest."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any

LISTED = 30  # names in a message


class UnknownNameError(ValueError):
    """A name (of a network, a variant, an option ...) that does not exist."""


def check_name(kind: str, name: str, valid: Iterable[str]) -> None:
    """Raise `UnknownNameError` unless `name` is one of `valid`; the message names the nearest and lists the rest."""
    names = sorted(valid)
    if name in names:
        return
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    listed = ", ".join(names[:LISTED]) if names else "none"
    if len(names) > LISTED:
        listed += f" and {len(names) - LISTED} more"
    raise UnknownNameError(f"unknown {kind} {name!r}.{hint} Valid: {listed}.")


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a dotted name matches any of the shell-style `patterns`, as "layer1.*" does "layer1.0.weight"."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def option_names(function: Callable[..., Any], *, besides: Iterable[str] = ()) -> set[str]:
    """Names of the parameters that `function` takes, without `besides`."""
    skipped = {"self", *besides}
    return {name for name in inspect.signature(function).parameters if name not in skipped}
