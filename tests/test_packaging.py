"""pyproject.toml and the two constraints files agree, and name no release that must never be installed."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
MALICIOUS = ("2.6.2", "2.6.3")


def requirements(*extras: str) -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pins(file: str) -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    split = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): Version(version) for name, version in split}


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
def test_malicious_lightning_releases_are_excluded(name: str) -> None:
    specifier = requirements()[name].specifier
    assert not any(specifier.contains(version) for version in MALICIOUS)
    assert specifier.contains("2.6.1")
    assert specifier.contains("2.6.4")


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-minimum.txt"])
def test_pins_meet_the_requirements(file: str) -> None:
    required = requirements("tensorboard", "fid", "medical", "dev")
    for name, version in pins(file).items():
        assert version.local is None, f"{name}: a local suffix admits one build only"
        if name in required:
            assert required[name].specifier.contains(version), f"{file} pins {name} {version}"


def test_everything_direct_is_pinned() -> None:
    assert requirements("tensorboard", "fid", "dev").keys() <= pins("constraints.txt").keys()


def test_minimum_pins_are_the_lower_bounds() -> None:
    minimum = pins("constraints-minimum.txt")
    for name, requirement in requirements("tensorboard").items():
        (bound,) = (Version(spec.version) for spec in requirement.specifier if spec.operator == ">=")
        assert minimum[name] == bound, f"{name}: pyproject.toml says {bound}"
