"""`convsuite list models | convs | configs`: what there is, each with a line of description."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable

from lightning_modules.commands.config_files import PACKAGED, packaged_configs


def run(args: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="convsuite list", description="List what there is.")
    parser.add_argument("what", choices=LISTS)
    lines = LISTS[parser.parse_args(args).what]()
    width = max(map(len, lines), default=0)
    for name, description in lines.items():
        print(f"{name:<{width}}  {description}".rstrip())
    return 0


def models() -> dict[str, str]:
    from models import registry

    homes = {name: sys.modules[registry.model_builder(name).__module__] for name in registry.list_models()}
    described = {name: _first_line(module.__doc__) for name, module in homes.items()}
    return {**described, "timm/<name>": "any network of timm, with a variant in its convolutions"}


def convs() -> dict[str, str]:
    from models.convs import build_variant, list_convs

    return {name: _first_line(sys.modules[type(build_variant(name)).__module__].__doc__) for name in list_convs()}


def configs() -> dict[str, str]:
    return {name: _first_comment((PACKAGED / name).read_text()) for name in packaged_configs()}


LISTS: dict[str, Callable[[], dict[str, str]]] = {"models": models, "convs": convs, "configs": configs}


def _first_line(docstring: str | None) -> str:
    """The summary of a module's docstring, without the name that it may begin with."""
    summary = " ".join((docstring or "").partition("\n\n")[0].split())
    return re.sub(r"^`[\w-]+`: ", "", summary)


def _first_comment(text: str) -> str:
    lines = text.splitlines()
    return lines[0].lstrip("# ") if lines and lines[0].startswith("#") else ""
