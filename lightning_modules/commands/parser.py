"""The command line's parser: what is wrong in a few lines, and what was probably meant."""

from __future__ import annotations

import difflib
import inspect
import pydoc
import re
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

UNION = "Does not validate against any of the Union subtypes"
# Every optional class adds these lines around the one that says something.
OTHER_CHOICE = "Expected a <class 'NoneType'>"
NOISE = re.compile(rf"\s*(- )?({UNION}|Subtypes: .*|Errors:|{OTHER_CHOICE}.*|Given value.*|)")


class CommandParser(LightningArgumentParser):
    """LightningCLI's parser with a short usage, messages without padding, and the nearest name for an unknown option.

    Options are not abbreviated: a mistyped one would be taken for another.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def print_usage(self, file: Any = None) -> None:
        print(
            f"usage: {self.prog} --config FILE [--config FILE ...] [--model.KEY VALUE] [--data.KEY VALUE] ...",
            file=file,
        )

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error("\n".join(_without_noise(message)) + self._nearest_option(message), ex)

    def _nearest_option(self, message: str) -> str:
        if unknown := re.search(r"unrecognized arguments: (--[\w.]+)", message, re.IGNORECASE):
            return _nearest(unknown[1], self._option_string_actions)
        unknown = re.search(r"(?:Option|Key) '(\w+)' is not (?:accepted|expected)", message)
        owners = re.findall(r"class_path(?: |=)'([\w.]+)'", message)
        if unknown is None or not owners:
            return ""
        return _nearest(unknown[1], inspect.signature(pydoc.locate(owners[-1])).parameters)  # type: ignore[arg-type]


def _nearest(name: str, valid: Any) -> str:
    nearest = difflib.get_close_matches(name, valid, n=1)
    return f"\nDid you mean {nearest[0]!r}?" if nearest else ""


def _without_noise(message: str) -> list[str]:
    return [line for line in message.splitlines() if not NOISE.fullmatch(line)]


def own_error(error: ValueError) -> Exception:
    """The error that a class raised at its construction, out of jsonargparse's account of all that it tried."""
    inner: Exception = error
    while str(inner).startswith(UNION) and isinstance(inner.__cause__, Exception):
        inner = inner.__cause__
    if str(inner).startswith(OTHER_CHOICE):  # older versions keep the error of the last thing that they tried
        return ValueError(" ".join(line.strip(" -") for line in _without_noise(str(error))))
    return inner
