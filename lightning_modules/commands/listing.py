"""`convsuite list models | convs | configs`: what there is, each with a sentence of description."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping

from lightning_modules.commands.config_files import PACKAGED, Kind, description, kind_of, packaged_configs

NARROWEST, WIDEST = 40, 120  # columns of text, whatever the terminal has; a file gets the widest

HEADINGS: dict[Kind, str] = {
    "experiment": "Experiments, complete: convsuite fit_test --config NAME",
    "overlay": "Overlays, for experiments of their folder: convsuite fit_test --config EXPERIMENT --config NAME",
    "trainer": "Overlays for any experiment, where it runs and what logs it: --config EXPERIMENT --config NAME",
    "grid": "Grids of experiments, tables and figures: convsuite reproduce NAME",
    "sweep": f"Sweeps of Weights & Biases, in {PACKAGED}: wandb sweep FILE",
}


def run(args: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="convsuite list", description="List what there is.")
    parser.add_argument("what", nargs="?", choices=LISTS, help="by default what can be listed")
    what = parser.parse_args(args).what
    if what is None:
        _print({f"convsuite list {name}": contents for name, (contents, _) in LISTS.items()})
    else:
        LISTS[what][1]()
    return 0


def list_models() -> None:
    from models import registry

    builders = {name: registry.model_builder(name) for name in registry.list_models()}
    homes = Counter(builder.__module__ for builder in builders.values())
    described = {}
    for name, builder in builders.items():
        family = _summary(sys.modules[builder.__module__].__doc__)
        described[name] = f"{_summary(builder.__doc__)} {family}" if homes[builder.__module__] > 1 else family
    _print({**described, "timm/<name>": "any network of timm, with a variant in its convolutions"})


def list_convs() -> None:
    from models.convs import build_variant
    from models.convs import list_convs as names

    _print({name: _summary(sys.modules[type(build_variant(name)).__module__].__doc__) for name in names()})


def list_configs() -> None:
    files = {name: PACKAGED / name for name in packaged_configs()}
    kinds = {name: kind_of(file) for name, file in files.items()}
    for kind, heading in HEADINGS.items():
        print(heading if kind == next(iter(HEADINGS)) else f"\n{heading}")
        _print({name: description(files[name]) for name in files if kinds[name] == kind}, indent="  ")


# Name: (what it lists, the function that does it).
LISTS: dict[str, tuple[str, Callable[[], None]]] = {
    "models": ("networks: --model.model NAME", list_models),
    "convs": ("convolution variants, for any network: --model.conv NAME", list_convs),
    "configs": ("experiments, overlays and grids, by kind", list_configs),
}


def _print(entries: Mapping[str, str], indent: str = "") -> None:
    """Names and their descriptions in two columns, or a name on a line of its own where it takes half of the line."""
    width = min(max(shutil.get_terminal_size((WIDEST, 0)).columns, NARROWEST), WIDEST)
    longest = max((len(name) for name in entries if len(name) <= width // 2), default=0)
    column = " " * (len(indent) + longest + 2)
    for name, text in entries.items():
        beside = f"{indent}{name}".ljust(len(column))
        if len(name) > longest:
            print(f"{indent}{name}")
            beside = column
        print(textwrap.fill(text, width, initial_indent=beside, subsequent_indent=column, break_on_hyphens=False))


def _summary(docstring: str | None) -> str:
    """The first paragraph of a docstring, without the name that it may begin with, nor where to read on."""
    summary = " ".join((docstring or "").partition("\n\n")[0].split())
    return re.sub(r"^`[\w-]+`: | See `\w+`\.$", "", summary)
