"""`convsuite doctor`: whether this installation can work, and what to do where it cannot."""

from __future__ import annotations

import argparse
import netrc
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from datamodules.folders import data_folder
from lightning_modules.commands.config_files import packaged_configs

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# Uploads to the package index that stole credentials.
COMPROMISED = {"lightning": {"2.6.2", "2.6.3"}, "pytorch-lightning": {"2.6.2", "2.6.3"}}
# Data module: patterns of the folders by which it knows its data, below the root; none: it needs no files. A copy of
# what the modules say, since importing them is slow, and may be what does not work.
DATA_FOLDERS: dict[str, tuple[str, ...]] = {
    "BraTSDataModule": ("*[Bb][Rr][Aa][Tt][Ss]*",),
    "CatsDogsDataModule": (
        "cats_dogs",
        "cats_and_dogs",
        "dogs-vs-cats*",
        "dogs_vs_cats",
        "kagglecatsanddogs_*",
        "PetImages",
    ),
    "COCODataModule": ("coco", "COCO", "annotations"),
    "CelebADataModule": ("celeba",),
    "CityscapesDataModule": ("cityscapes", "Cityscapes", "leftImg8bit"),
    "DigitsDataModule": (),
    "FashionMNISTDataModule": ("FashionMNIST",),
    "ImageNetDataModule": ("ILSVRC2012", "imagenet*", "ImageNet", "ILSVRC", "tiny-imagenet-200"),
    "NucleiDataModule": (
        "monuseg",
        "MoNuSeg*",
        "TNBC_NucleiSegmentation",
        "Slide_*",
        "dsb2018",
        "data-science-bowl-2018",
        "stage1_train",
    ),
    "PascalVOCDataModule": ("VOCdevkit/VOC2012",),
    "ToyLesionDataModule": (),
    "VolumeFolderDataModule": ("*/imagesTr",),
}
LITTLE_DISK = 2 * 1024**3


class Finding(NamedTuple):
    """One line of the report; a "problem" makes the command fail, a "note" does not."""

    state: Literal["ok", "note", "problem"]
    what: str
    mend: str = ""


def run(args: list[str]) -> int:
    """Run the command. Returns 1 if something is broken."""
    argparse.ArgumentParser(prog="convsuite doctor", description=__doc__).parse_args(args)
    findings = [finding for check in CHECKS for finding in check()]
    for state, what, mend in findings:
        print(f"{state:<8} {what}")
        if mend:
            print(f"{'':<8}   -> {mend}")
    problems = sum(finding.state == "problem" for finding in findings)
    print(f"\n{problems} problem(s)." if problems else "\nAll well.")
    return 1 if problems else 0


def check_python() -> Iterator[Finding]:
    yield Finding("ok", f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")


def check_requirements() -> Iterator[Finding]:
    """The suite's own requirements, as its metadata states them, and its extras."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires("convsuite") or []]
    except metadata.PackageNotFoundError:
        yield Finding("note", "convsuite runs from a source tree that is not installed", "pip install -e .")
        return
    core = [requirement for requirement in requirements if "extra" not in str(requirement.marker)]
    unmet = [requirement for requirement in core if not _is_met(requirement)]
    for requirement in unmet:
        have = _version(requirement.name) or "not installed"
        yield Finding("problem", f"{requirement.name}: {have}", f"pip install '{requirement}'")
    if not unmet:
        names = ("torch", "torchvision", "lightning", "torchmetrics", "timm", "wandb", "jsonargparse")
        yield Finding("ok", ", ".join(f"{name} {_version(name)}" for name in names))
    for extra in metadata.metadata("convsuite").get_all("Provides-Extra") or []:
        wanted = [r for r in requirements if r.marker and r.marker.evaluate({"extra": extra}) and r not in core]
        missing = [requirement.name for requirement in wanted if not _is_met(requirement)]
        mend = f"if you want it: pip install 'convsuite[{extra}]'" if missing else ""
        state = f"not installed: {', '.join(missing)}" if missing else "installed"
        yield Finding("note" if missing else "ok", f"extra {extra}: {state}", mend)


def check_compromised() -> Iterator[Finding]:
    for name, versions in COMPROMISED.items():
        if _version(name) in versions:
            yield Finding(
                "problem",
                f"{name} {_version(name)} is a malicious upload",
                f"pip install -U '{name}!=2.6.2,!=2.6.3', and change every password and key this machine has seen",
            )


def check_torch_pair() -> Iterator[Finding]:
    """torchvision belongs to one torch, and both to one CUDA: otherwise importing torchvision fails.

    Read from their files, since importing the pair may be what does not work.
    """
    from packaging.requirements import Requirement

    torch, vision = _built_version("torch"), _built_version("torchvision")
    if torch is None or vision is None:
        return
    mend = "install the two together: pip install --force-reinstall torch torchvision"
    wanted = [Requirement(line) for line in metadata.requires("torchvision") or []]
    unmet = next((r for r in wanted if r.name == "torch" and not r.specifier.contains(torch, prereleases=True)), None)
    if unmet is not None:
        yield Finding("problem", f"torchvision {vision} needs {unmet}, but torch is {torch}", mend)
    builds = [version.partition("+")[2] for version in (torch, vision)]
    if all(builds) and builds[0] != builds[1]:
        yield Finding("problem", f"torch {torch} and torchvision {vision} are different builds", mend)
    elif unmet is None:
        yield Finding("ok", f"torch {torch} and torchvision {vision} belong together")


def check_accelerators() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding(
            "problem", f"torch cannot be imported: {error}", "pip install --force-reinstall torch torchvision"
        )
        return
    for index in range(torch.cuda.device_count()):
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: use precision 16-mixed or 32-true"
        yield Finding("ok", f"GPU {index}: {torch.cuda.get_device_name(index)}, {bf16}")
    if torch.backends.mps.is_available():
        yield Finding("ok", "GPU: Apple (mps)")
    elif torch.cuda.device_count() == 0 and shutil.which("nvidia-smi"):
        yield Finding("note", "there is an NVIDIA driver, but torch sees no GPU", "install a CUDA build of torch")
    fast = "in hardware" if _cpu_has_bfloat16() else "emulated and slow: keep precision 32-true on the CPU"
    yield Finding("ok", f"CPU: {os.cpu_count()} cores, {torch.get_num_threads()} threads, bfloat16 {fast}")


def check_configs() -> Iterator[Finding]:
    if not packaged_configs():
        yield Finding("problem", "the packaged configs are missing", "install convsuite again")


def check_data() -> Iterator[Finding]:
    """Which data sets have a folder; what is in it is not read."""
    root = Path(data_folder(None))
    named = "$CONVSUITE_DATA" if os.environ.get("CONVSUITE_DATA") else "default"
    found = {
        data: sorted({folder.relative_to(root).as_posix() for folder in _folders(root, patterns)})
        for data, patterns in DATA_FOLDERS.items()
    }
    if any(found.values()):
        yield Finding("ok", f"data in {root} ({named})")
    else:
        mend = "set CONVSUITE_DATA, or --data.root, to the folder that holds them; Fashion-MNIST is downloaded into it"
        yield Finding("note", f"no data in {root} ({named})", mend)
    for data, patterns in DATA_FOLDERS.items():
        if found[data] or not patterns:
            yield Finding("ok", f"  {data}: {', '.join(found[data]) or 'needs no files'}")
        else:
            yield Finding("note", f"  {data}: not there ({' or '.join(patterns)})")


def check_disk() -> Iterator[Finding]:
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here):
            pass
    except OSError as error:
        yield Finding(
            "problem", f"{here} cannot be written: {error.strerror}", "work in another folder: runs/ goes here"
        )
        return
    free = shutil.disk_usage(here).free
    text = f"{here} can be written, {free / 1024**3:.1f} GiB free"
    yield Finding("ok", text) if free > LITTLE_DISK else Finding("note", text, "runs need room for their checkpoints")


def check_wandb() -> Iterator[Finding]:
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        yield Finding("ok", f"W&B: WANDB_MODE={os.environ['WANDB_MODE']}")
    elif os.environ.get("WANDB_API_KEY") or any("wandb" in host for host in _netrc_hosts()):
        yield Finding("ok", "W&B: logged in")
    else:
        yield Finding(
            "note", "W&B: not logged in", "wandb login; or --config logger/wandb_offline.yaml needs no account"
        )


CHECKS: list[Callable[[], Iterator[Finding]]] = [
    check_python,
    check_requirements,
    check_compromised,
    check_torch_pair,
    check_accelerators,
    check_configs,
    check_data,
    check_disk,
    check_wandb,
]


def _folders(root: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Not the archives that a data set comes in, which may be named like its folder: none is read packed."""
    return [path for pattern in patterns for path in root.glob(pattern) if path.is_dir()]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_met(requirement: Requirement) -> bool:
    version = _version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _built_version(package: str) -> str | None:
    """`__version__` with its build tag (+cu130, +cpu), which the metadata may lack."""
    found = util.find_spec(package)
    if found is None or found.origin is None:
        return None
    text = (Path(found.origin).parent / "version.py").read_text()
    version = re.search(r"__version__ = ['\"]([^'\"]+)", text)
    return version[1] if version else _version(package)


def _cpu_has_bfloat16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine() == "arm64"  # Apple's from M2 on; M1 emulates
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _netrc_hosts() -> list[str]:
    try:
        return list(netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return []
