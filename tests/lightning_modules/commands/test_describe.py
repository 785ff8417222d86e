import io
import re
from collections import OrderedDict

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from datamodules.volumes.patch_sampling import PatchCutter
from lightning_modules.cli import main
from lightning_modules.commands.describe import Extras, describe, layer_type
from models import create_model
from models.memory import measure_memory


def described(network, input_size, width=160, cutter=None, **extras):
    console = Console(file=io.StringIO(), width=width)
    describe(network, input_size, console, Extras(**extras), cutter)
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


def needed(patch):
    near = ", ".join(str(patch + change) for change in (-4, -2, 2, 4))
    return f"{patch}×{patch} needs an input of {patch + 8}×{patch + 8}, 4 more at each border; near it fit {near}"


@pytest.mark.parametrize(("side", "patch"), [(40, 32), (32, 24), (31, 22)])
def test_a_valid_network_says_the_input_that_it_needs(side, patch):
    """Of the input that it is given, or of the nearest one that it takes."""
    network = small_unet(padding="valid")
    assert network.margin == 4
    rows = rows_of(described(network, (1, 1, side, side)))
    assert rows["network"] == [f"UNet, input 1×1×{patch + 8}×{patch + 8}"]
    assert rows["output patch"] == [needed(patch)]
    assert "data.context" not in rows


@pytest.mark.parametrize(("patch", "nearest"), [(32, 32), (33, 32)])
@pytest.mark.parametrize("context", [0, 4, 5])
def test_the_patch_of_the_data_is_described_whatever_their_context(patch, nearest, context):
    side = patch + 2 * context
    cutter = PatchCutter((patch, patch), context)
    rows = rows_of(described(small_unet(padding="valid"), (1, 1, side, side), cutter=cutter))
    unfit = "33×33 (data.patch_size) does not fit its grid; " if patch == 33 else ""
    assert rows["output patch"] == [unfit + needed(nearest)]
    assert rows["network"] == ["UNet, input 1×1×40×40"]
    assert ("data.context" in rows) == (context != 4)
    if context != 4:
        assert rows["data.context"] == [f"{context} is not the network's margin: set it to 4"]


def test_a_padded_network_is_described_on_patch_and_context():
    rows = rows_of(described(small_unet(), (1, 1, 34, 34), cutter=PatchCutter((32, 32), 1)))
    assert rows["network"] == ["UNet, input 1×1×34×34"]
    assert "data.context" not in rows


def test_a_layer_that_runs_several_times_stands_in_each_of_its_places():
    network = create_model("fashion_cnn", in_channels=1, num_classes=10)
    lines = [line.split() for line in described(network, (1, 1, 28, 28)).splitlines()]
    layers = [cells for cells in lines if cells and cells[0] in ("conv1", "conv2", "pool")]
    assert [cells[0] for cells in layers] == ["conv1", "pool", "conv2", "pool", "pool"]
    assert [cells[-4] for cells in layers if cells[0] == "pool"] == ["32×14×14", "64×7×7", "128×3×3"]


def test_a_network_that_takes_slices_in_several_passes_says_so():
    network = create_model("slice_wise", network="unet", network_options={"widths": [2, 4]}, batch_size=3)
    rows = rows_of(described(network, (1, 1, 8, 8, 7)))
    assert rows["network.classifier"][0] == "Conv2d (kernel_size=1), 3 calls"


def test_numbers_and_names_stay_in_one_piece_in_a_narrow_terminal():
    wide, narrow = (described(small_unet(dimensions=3), (1, 1, 320, 320, 320), width) for width in (160, 60))
    pieces = {cell for cell in wide.split() if "=" not in cell and "─" not in cell}
    assert pieces <= set(narrow.split())


def test_the_effective_field_is_measured_where_asked_for():
    torch.manual_seed(0)  # of so few rectified maps all may be dead
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


def test_the_command_describes_the_patch_of_the_data(capsys):
    network = "{dimensions: 3, widths: [2, 4], kernel_size: 3, padding: valid}"
    options = ["--model.model_options", network, "--data.patch_size", "33", "--data.context", "10"]
    assert main(["describe", "--config", "medical/folder.yaml", *options]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["output patch"][0].startswith("33×33×33 (data.patch_size) does not fit its grid; 32×32×32 needs an")
    assert rows["data.context"] == ["10 is not the network's margin: set it to 8"]


def test_octave_convolutions_are_one_key_of_own_volumes(capsys):
    assert main(["describe", "--config", "medical/folder.yaml", "--model.conv", "octave"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) > 80, "a log is no narrow terminal"
    assert any("OctaveConv3d (kernel_size=3, alpha_in=0.5, alpha_out=0.5)" in line for line in lines)
