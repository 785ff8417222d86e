"""Patches of volumes beside MONAI's plain pipeline, and training steps of a 3-D U-Net: variants, precision, memory.

    python -m benchmarks.medical [--device cuda] [--threads 2] [--seconds 1] [--json results.json]

Both loaders read the same NIfTI files of BraTS's size (generated), hold them normalised in memory, and centre half of
the patches on a lesion; they run in the process that measures and take turns. MONAI's crop searches the mask at every
call for where it may lie, unless the places are listed beforehand (`FgBgToIndicesd`), and may cut several patches out
of a volume that it has at hand; the suite takes every patch from a subject of its own. Needs the extra `medical`.

A training step is a forward pass, cross-entropy, the backward pass, and an update by SGD. `peak MiB` are the tensors
that are alive at once beside weights and volumes (`models.memory`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import RandomSampler

from benchmarks.bench import PRECISIONS, Bench, Measure, Row, run
from benchmarks.memory import peak_mib
from benchmarks.timing import Step
from models import create_model
from models.analysis import analyse

VOLUME = (240, 240, 155)
"""Voxels of a scan of BraTS."""
SUBJECTS, CHANNELS = 2, 2
PATCH_SIZES = (32, 96)
BATCH, PATCHES_AN_EPOCH = 4, 256
CONVS: dict[str, Any] = {
    "standard": "standard",
    "octave": {"name": "octave", "alpha": 0.5},
    "gaussian": {"name": "gaussian", "order": 2},
    "gaussian, separated": {"name": "gaussian", "order": 2, "separated": True},
    "depthwise_separable": "depthwise_separable",
}
WIDTHS = (8, 16, 32)
SIDE, STEP_BATCH = 32, 2
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


def write_subjects(folder: Path) -> list[str]:
    """Cases as nnU-Net names them: scans of noise within a ball, and a mask with a small ball as lesion."""
    import nibabel

    random = np.random.default_rng(0)
    distance = np.sqrt(sum((axis / side - 0.5) ** 2 for axis, side in zip(np.indices(VOLUME), VOLUME, strict=True)))
    scans = [random.integers(1, 1000, VOLUME, dtype=np.int16) * (distance < 0.45) for _ in range(CHANNELS)]
    images = {f"imagesTr/{{}}_{channel:04}": scan for channel, scan in enumerate(scans)}
    images["labelsTr/{}"] = (distance < 0.1).astype(np.uint8)
    names = [f"case_{number}" for number in range(SUBJECTS)]
    for path, voxels in images.items():
        for name in names:
            file = folder / f"{path.format(name)}.nii.gz"
            file.parent.mkdir(exist_ok=True)
            nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(file)
    return names


def suite_loader(folder: Path, side: int) -> Iterable[Any]:
    from datamodules.volume_folder import VolumeFolderDataModule

    data = VolumeFolderDataModule(
        root=str(folder),
        folder=str(folder),
        modalities=[f"{channel:04}" for channel in range(CHANNELS)],
        class_names=["background", "lesion"],
        val_size=0,
        test_size=0,
        patch_size=side,
        patch_centres="foreground",
        patches_per_epoch=PATCHES_AN_EPOCH,
        batch_size=BATCH,
    )
    data.setup("fit")
    return data.train_dataloader()


def monai_loader(folder: Path, names: list[str], side: int, samples: int, listed: bool = False) -> Iterable[Any]:
    """MONAI's: `samples` patches of each volume that it has at hand, places of classes listed or searched for."""
    from monai import transforms
    from monai.data import CacheDataset, DataLoader

    files = [
        {
            "image": [folder / f"imagesTr/{name}_{channel:04}.nii.gz" for channel in range(CHANNELS)],
            "label": folder / f"labelsTr/{name}.nii.gz",
        }
        for name in names
    ]
    transform = transforms.Compose(
        [
            transforms.LoadImaged(["image", "label"]),
            transforms.EnsureChannelFirstd(["image", "label"]),
            transforms.Orientationd(["image", "label"], "RAS", labels=None),
            transforms.NormalizeIntensityd("image", channel_wise=True),
            *([transforms.FgBgToIndicesd("label", "_fg_indices", "_bg_indices")] if listed else []),
            transforms.RandCropByPosNegLabeld(
                ["image", "label"],
                "label",
                (side,) * 3,
                pos=1,
                neg=1,
                num_samples=samples,
                fg_indices_key="label_fg_indices" if listed else None,
                bg_indices_key="label_bg_indices" if listed else None,
            ),
        ]
    )
    cached = CacheDataset(files, transform, progress=False)
    # As many draws an epoch as the suite's loader, for so few volumes.
    sampler = RandomSampler(cached, replacement=True, num_samples=PATCHES_AN_EPOCH // samples)
    return DataLoader(cached, batch_size=BATCH // samples, sampler=sampler)


def next_batch(loader: Iterable[Any]) -> Step:
    """The step of taking one more batch, epoch after epoch."""
    return partial(next, chain.from_iterable(repeat(loader)))


def loaders(bench: Bench) -> Iterator[Row]:
    """A batch of every loader, by patch size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_subjects(folder)
        for side in PATCH_SIZES:
            contenders = {
                "suite": suite_loader(folder, side),
                "MONAI": monai_loader(folder, names, side, 1),
                f"MONAI, {BATCH} patches a volume": monai_loader(folder, names, side, BATCH),
                "the same, places listed": monai_loader(folder, names, side, BATCH, listed=True),
            }
            timings = bench.time({kind: next_batch(loader) for kind, loader in contenders.items()})
            for kind in contenders:
                yield {
                    "patch": f"{side}x{side}x{side}",
                    "loader": kind,
                    "patches a second": 1000 * BATCH / timings.median_ms(kind),
                    "suite, times as fast": timings.ratio(kind, to="suite"),
                }


class TrainingStep:
    """A small 3-D U-Net and volumes; a call is a training step, at learning rate 0, which leaves the numbers alone."""

    def __init__(
        self,
        bench: Bench,
        conv: str = "standard",
        precision: str = "float32",
        memory_format: str = "contiguous",
    ) -> None:
        network = create_model(
            "unet", dimensions=3, in_channels=CHANNELS, widths=WIDTHS, kernel_size=3, conv=CONVS[conv]
        )
        layout = MEMORY_FORMATS[memory_format]
        self.network = network.to(bench.device).to(memory_format=layout)
        volumes = torch.randn(STEP_BATCH, CHANNELS, SIDE, SIDE, SIDE, device=bench.device)
        self.volumes = volumes.to(memory_format=layout)
        self.masks = torch.randint(2, (STEP_BATCH, SIDE, SIDE, SIDE), device=bench.device)
        self.forward = bench.in_precision(precision, self.network)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.0, momentum=0.9)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.forward(self.volumes).float(), self.masks).backward()
        self.optimizer.step()


def variants(bench: Bench) -> Iterator[Row]:
    """Training steps with every variant that has a 3-D form."""
    steps = {conv: TrainingStep(bench, conv) for conv in CONVS}
    timings = bench.time(steps)
    for conv, step in steps.items():
        counted = analyse(step.network, step.volumes.shape)
        yield {
            "variant": conv,
            "parameters": counted.parameters,
            "GMACs a volume": counted.macs / STEP_BATCH / 1e9,
            "step ms": timings.median_ms(conv),
            "/ standard": timings.ratio(conv, to="standard"),
            "peak MiB": peak_mib(step),
        }


def precisions(bench: Bench) -> Iterator[Row]:
    """Training steps of the standard U-Net in both precisions and memory formats."""
    steps = {
        f"{precision}, {memory_format}": TrainingStep(bench, "standard", precision, memory_format)
        for precision in PRECISIONS
        for memory_format in MEMORY_FORMATS
    }
    timings = bench.time(steps)
    first = next(iter(steps))
    for kind, step in steps.items():
        yield {
            "precision, memory": kind,
            "step ms": timings.median_ms(kind),
            "times as fast": timings.ratio(first, to=kind),
            "peak MiB": peak_mib(step),
        }


STEPS = f"Training step of a 3-D U-Net {'-'.join(map(str, WIDTHS))}, {STEP_BATCH} patches of {SIDE}x{SIDE}x{SIDE}"
TABLES: dict[str, Measure] = {
    f"Batches of {BATCH} patches with {CHANNELS} scans, of {SUBJECTS} volumes of {'x'.join(map(str, VOLUME))}": loaders,
    f"{STEPS}, float32 and contiguous: variants": variants,
    f"{STEPS}: precision and memory format": precisions,
}


if __name__ == "__main__":
    run("benchmarks.medical", "Time patch loaders, and training steps on volumes.", TABLES)
