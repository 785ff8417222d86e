import io
import re
from collections import OrderedDict

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.cli import main
from lightning_modules.commands.describe import Extras, describe, layer_type
from models import create_model
from models.memory import measure_memory


def described(network, input_size, width=160, **extras):
    console = Console(file=io.StringIO(), width=width)
    describe(network, input_size, console, Extras(**extras))
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


def small_unet(**options):
    return create_model("unet", widths=(2, 4), kernel_size=3, convs_per_level=1, **options)


def test_volumes_are_described_at_once():
    """A pass over the values of this one would take a minute, and gigabytes."""
    rows = rows_of(described(small_unet(dimensions=3), (1, 1, 320, 320, 320)))
    assert rows["network"] == ["UNet, input 1×1×320×320×320"]
    assert rows["receptive field"] == ["10×10×10"]
    assert rows["encoder.0.convs.0"][1:] == ["2×320×320×320", "56", f"{54 * 320**3:,}", "3×3×3"]


def test_a_padded_network_needs_no_more_than_its_patch():
    assert "output patch" not in rows_of(described(small_unet(), (1, 1, 24, 24)))


@pytest.mark.parametrize("side", [40, 32, 31])
def test_a_valid_network_says_the_input_that_it_needs(side):
    """Of an input that it takes, or of the output patch nearest to what it is given."""
    network = small_unet(padding="valid")
    assert network.margin == 4
    rows = rows_of(described(network, (1, 1, side, side)))
    patch = side - 8 if network.fits(side - 8) else 30
    assert rows["network"] == [f"UNet, input 1×1×{patch + 8}×{patch + 8}"]
    near = ", ".join(str(patch + change) for change in (-4, -2, 2, 4))
    said = f"{patch}×{patch} needs an input of {patch + 8}×{patch + 8}, 4 more at each border; near it fit {near}"
    assert rows["output patch"] == [said]


def test_the_effective_field_is_measured_where_asked_for():
    network = create_model("deepmedic", scales=(1,), widths=(2, 2), classifier_widths=(2,))
    assert "effective field" not in rows_of(described(network, (1, 1, 16, 16)))
    (said,) = rows_of(described(network, (1, 1, 16, 16), effective_field=2))["effective field"]
    assert re.fullmatch(r"(\d)×(\d) hold 95 % of the gradient's energy along each axis, σ .* \(2 inputs\)", said)


def test_patch_sizes(tmp_path):
    network = small_unet(dimensions=3, padding="valid")
    plot = tmp_path / "plots" / "unet.png"
    text = described(network, (1, 1, 16, 16, 16), patch_sizes=[8, 17], patch_plot=plot)
    rows = rows_of(text)
    assert rows["stride 1"] == ["encoder.0.norms.0", "2×14×14×14", "1", "3×3×3"]
    assert rows["stride 2"] == ["encoder.1.norms.0", "4×5×5×5", "2", "8×8×8"]
    memory = measure_memory(network, (1, 1, 16, 16, 16))
    assert rows["8×8×8"] == [
        "16×16×16",
        "12.5 %",
        f"{memory.training / 2**20:.1f}",
        f"{memory.inference / 2**20:.1f}",
        f"{memory.training / 2**10 / 8**3:.2f}",
        f"{memory.inference / 2**10 / 8**3:.2f}",
    ]
    assert {"16×16×16", "18×18×18"} <= set(rows), "17 is not on its grid"
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_memory_is_that_of_the_precision():
    text = described(small_unet(), (1, 1, 16, 16), patch_sizes=[16], autocast=torch.bfloat16)
    assert "bfloat16 autocast" in text
    memory = measure_memory(small_unet(), (1, 1, 16, 16), torch.bfloat16)
    assert rows_of(text)["16×16"][4] == f"{memory.training / 2**10 / 16**2:.2f}"


def test_patches_of_a_network_that_gives_none(network):
    with pytest.raises(ValueError, match=r"patch_sizes are for networks that give patches .* not Sequential"):
        described(network, (1, 3, 32, 32), patch_sizes=[16])


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"patch_sizes": [16, 0]}, r"patch_sizes must be positive, got \[16, 0\]"),
        ({"patch_sizes": [16], "patch_plot": "plot.png"}, "give two or more, such as --patch_sizes 16 32 64"),
        ({"effective_field": -1}, "effective_field is a number of random inputs, got -1"),
    ],
)
def test_impossible_extras(extras, message):
    with pytest.raises(ValueError, match=message):
        Extras(**extras)


def test_extras_are_options_of_the_command(tmp_path, capsys):
    plot = tmp_path / "plot.png"
    config = ["--config", "gaussian/nuclei/unet.yaml", "--trainer.precision", "bf16-mixed"]
    assert main(["describe", *config, "--patch_sizes", "32", "64", "--patch_plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "bfloat16 autocast" in out
    assert "64×64" in out
    assert plot.is_file()
