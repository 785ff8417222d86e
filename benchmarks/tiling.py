"""What tiles cost and save: a U-Net on an image of 1000x1000 pixels, whole and through a sliding window.

    python -m benchmarks.tiling [--device cuda] [--threads 1] [--seconds 1] [--json results.json]

Tiles bound the memory of activations by the tile's size and pay for it with the pixels that they share: `pixels` is how
many the network sees for each pixel of the image, `ms / whole` what the clock makes of that. `peak MiB` are the tensors
alive at once beside the weights and the image (`models.memory`). `difference` is the largest one from the logits of
the whole image, as a share of the largest of these: with a margin of half the receptive field (the overlap-tile
strategy) it is rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.bench import PRECISIONS, Bench, Measure, Row, run
from benchmarks.memory import peak_mib
from lightning_modules.inference import Inference
from models import create_model
from models.analysis import analyse

SIDE = 1000
TILE = 256
DOWNSAMPLING = 4  # of a U-Net with three levels


def unet(device: torch.device) -> nn.Module:
    """The U-Net of 97,652 parameters, with random weights."""
    network = create_model("unet", in_channels=3, num_classes=2, widths=(9, 18, 36), kernel_size=5)
    return network.to(device).to(memory_format=torch.channels_last).eval()


def ways(network: nn.Module) -> dict[str, Inference]:
    """What takes turns, by name."""
    field = analyse(network, (1, 3, 128, 128)).receptive_field
    assert field is not None
    margin = max(field) // 2 + DOWNSAMPLING
    tiles = partial(Inference, tile_size=TILE, align=DOWNSAMPLING, average="logits")
    return {
        "whole image": Inference(average="logits"),
        "overlap 0.5, hann": tiles(),
        f"margin {margin}, uniform": tiles(overlap=2 * margin / TILE, window="uniform", margin=margin),
    }


def whole_and_tiles(bench: Bench) -> Iterator[Row]:
    """A prediction of one image, in every way."""
    network = unet(bench.device)
    image = torch.randn(1, 3, SIDE, SIDE, device=bench.device).to(memory_format=torch.channels_last)
    for precision in PRECISIONS:
        forward = bench.in_precision(precision, network)
        steps = {name: partial(inference, forward, image) for name, inference in ways(network).items()}
        timings = bench.time(steps)
        whole = steps["whole image"]()
        for name, step in steps.items():
            yield {
                "precision": precision,
                "tiles": name,
                "ms": timings.median_ms(name),
                "ms / whole": timings.ratio(name, to="whole image"),
                "pixels": pixels_seen(step, network) / SIDE**2,
                "peak MiB": peak_mib(step),
                "difference": f"{(step() - whole).abs().max() / whole.abs().max():.0e}",
            }


def pixels_seen(step: Callable[[], Tensor], network: nn.Module) -> int:
    """Pixels that go through the network, those of overlaps as often as they do."""
    seen = []
    handle = network.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 0].numel()))
    step()
    handle.remove()
    return sum(seen)


TABLES: dict[str, Measure] = {
    f"Prediction of a {SIDE}x{SIDE} image by the U-Net 9-18-36, tiles of {TILE} in batches of 4": whole_and_tiles
}


if __name__ == "__main__":
    run("benchmarks.tiling", "Time whole images and tiles.", TABLES)
