"""Two gloo processes measure what one measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from lightning_modules.metrics import GenerationMetrics, Protocol, contrastive
from lightning_modules.metrics.collectives import from_first, gather_in_order
from tests.helpers.tiny_images import TinyReference, blob_images

ROOT = Path(__file__).parents[3]
GENERATED = 31


def measure(folder: Path, cache: Path) -> None:
    """Two epochs: 41 real and 31 generated images, of which processes have different numbers."""
    contrastive._LEAST_STEPS = 3  # in the process of the tests, `folder` puts it back
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    metrics = GenerationMetrics(Protocol(num_generated=GENERATED), cache_root=cache)
    data, images = TinyReference(blob_images(41)), blob_images(GENERATED, seed=1)
    epochs = []
    for _ in range(2):
        metrics.prepare(data, torch.device("cpu"))
        metrics.reset()
        for index in torch.arange(rank, GENERATED, world).split(4):
            metrics.update(images[index], index)
        epochs.append({name: float(value) for name, value in metrics.compute().items()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{rank}.json").write_text(json.dumps(epochs))


def exchange(folder: Path, rank: int) -> None:
    """One process without rows; one that fails."""
    index = torch.tensor([4, 0, 9]) if rank == 0 else torch.tensor([], dtype=torch.int64)
    rows, indices = gather_in_order(index[:, None].double(), index)
    assert rows.flatten().tolist() == indices.tolist() == [0, 4, 9]

    def fail() -> None:
        raise FileNotFoundError("no such weights")

    try:
        from_first(fail)
    except (FileNotFoundError, RuntimeError) as error:
        (folder / f"error_{rank}.txt").write_text(f"{type(error).__name__} {error}")


def run_process(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    measure(folder / "two", folder / "cache_of_two")
    measure(folder / "two_cached", folder / "cache_of_one")
    exchange(folder, rank)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("metrics_two_processes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, "_LEAST_STEPS", contrastive._LEAST_STEPS)
        measure(folder / "one", folder / "cache_of_one")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, __file__, str(folder)], check=True, env=environment, timeout=120)
    return folder


def read(folder: Path, name: str, rank: int = 0) -> list[dict[str, float]]:
    return json.loads((folder / name / f"{rank}.json").read_text())


@pytest.mark.parametrize("name", ["two", "two_cached"])
def test_two_processes_measure_what_one_measures(folder, name):
    expected = read(folder, "one")
    assert read(folder, name, 0) == read(folder, name, 1)
    for epoch in (0, 1):
        assert read(folder, name)[epoch] == pytest.approx(expected[epoch], rel=1e-6)


def test_one_process_trains(folder):
    """Both caches hold the same extractor: the training saw all images, in one process."""
    one, two = (list((folder / name).glob("extractor-*.pt")) for name in ("cache_of_one", "cache_of_two"))
    assert [path.name for path in one] == [path.name for path in two]
    assert one[0].read_bytes() == two[0].read_bytes()


def test_a_failure_of_the_first_ends_both(folder):
    assert (folder / "error_0.txt").read_text() == "FileNotFoundError no such weights"
    assert (
        folder / "error_1.txt"
    ).read_text() == "RuntimeError the first process failed: FileNotFoundError: no such weights"


if __name__ == "__main__":
    torch.multiprocessing.start_processes(run_process, (Path(sys.argv[1]),), nprocs=2, start_method="fork")
