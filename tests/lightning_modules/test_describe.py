import io
from collections import OrderedDict

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.commands.describe import describe, layer_type
from models import create_model


def described(network, input_size, width=160):
    console = Console(file=io.StringIO(), width=width)
    describe(network, input_size, console)
    return console.file.getvalue()


def rows_of(text):
    """Cells of the printed lines: columns stand two spaces or more apart."""
    lines = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    return {cells[0]: cells[1:] for cells in lines if cells}


@pytest.fixture
def network():
    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(16 * 64, 1000)
    )


def test_summary_agrees_with_torch(network):
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    rows = rows_of(described(network, (1, 3, 32, 32)))
    assert rows["network"] == ["Sequential, input 1×3×32×32"]
    assert rows["parameters"] == [f"{sum(p.numel() for p in network.parameters()):,}"]
    assert rows["MACs"] == [f"{counter.get_total_flops() // 2:,} (1.63 M)"]
    assert rows["receptive field"] == ["9×9 before addmm"]
    assert rows["output stride"] == ["4"]


def test_layers(network):
    rows = rows_of(described(network, (1, 3, 32, 32)))
    assert rows["0"] == ["Conv2d (kernel_size=7, stride=2)", "16×16×16", "2,368", "602,112", "7×7"]
    assert rows["2"] == ["MaxPool2d (kernel_size=2, stride=2)", "16×8×8", "0", "0", "9×9"]
    assert rows["5"] == ["Linear", "1000", "1,025,000", "1,024,000", "-"]
    assert "1" not in rows, "an activation changes nothing"
    assert "3" not in rows


class Partial(nn.Module):
    """Its auxiliary head runs in training only."""

    def __init__(self):
        super().__init__()
        self.used, self.auxiliary = nn.Conv2d(1, 1, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


def test_frozen_and_unused_parameters_are_told():
    network = Partial()
    network.used.requires_grad_(False)
    rows = rows_of(described(network, (1, 1, 8, 8)))
    assert rows["parameters"] == ["16 (10 frozen)"]
    assert rows["receptive field"] == ["3×3"]
    assert rows["auxiliary"] == ["Linear", "does not run", "6", "0", "-"]


@pytest.mark.parametrize(
    ("conv", "expected"),
    [
        ("standard", "Conv2d (kernel_size=3)"),
        (
            {"name": "gaussian", "order": 3, "num_bases": 4},
            "GaussianDerivativeConv2d (kernel_size=3, order=3, num_bases=4",
        ),
    ],
)
def test_says_what_a_layer_became(conv, expected):
    network = create_model("fashion_cnn", conv=conv, in_channels=1, num_classes=10)
    rows = rows_of(described(network, (1, 1, 28, 28)))
    assert rows["conv2"][0].startswith(expected)
    assert rows["receptive field"][0].endswith("before mean")


def test_both_members_of_octave_maps_are_shown():
    network = create_model("fashion_cnn", conv="octave", in_channels=1, widths=[8, 8, 8, 8], norm="batch")
    rows = rows_of(described(network, (1, 1, 28, 28)))
    assert rows["conv1"] == [
        "OctaveConv2d (kernel_size=3, alpha_in=0.0, alpha_out=0.5)",
        "4×28×28 + 4×14×14",
        "72",
        f"{9 * 4 * (28**2 + 14**2):,}",
        "6×6",
    ]
    assert rows["norm1.low"][:2] == ["BatchNorm2d", "4×14×14"]
    assert rows["conv4"][1] == "8×3×3"


def test_a_network_of_latents():
    network = create_model("dcgan_generator", conv="octave", image_size=16, base_width=4)
    rows = rows_of(described(network, (1, 100)))
    assert rows["network"] == ["DCGANGenerator, input 1×100"]
    assert rows["receptive field"] == rows["output stride"] == ["-"]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(3, 4, (3, 5), dilation=2, padding=1), "Conv2d(kernel_size=(3, 5), dilation=2)"),
        (nn.Conv2d(4, 4, 1, groups=4), "Conv2d(kernel_size=1, groups=4)"),
        (nn.BatchNorm2d(3), "BatchNorm2d"),
        (nn.Upsample(scale_factor=2), "Upsample(scale_factor=2.0, mode='nearest')"),
        (nn.ReLU(inplace=True), "ReLU"),
    ],
)
def test_layer_type(module, expected):
    assert layer_type(module) == expected


def test_free_text_in_extra_repr():
    class Free(nn.Module):
        def extra_repr(self):
            return "3 -> 4 [bold]"

    assert layer_type(Free()) == "Free"


def test_names_are_no_markup():
    network = nn.Sequential(OrderedDict({"[red]": nn.Conv2d(1, 1, 3)}))
    assert "[red]" in rows_of(described(network, (1, 1, 8, 8)))
