"""What `unet`, `fcn` and `deepmedic` share, in two and three dimensions: padding, margins, the grid, every variant."""

from __future__ import annotations

import copy
import io
from itertools import count as count_up

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models import create_model
from models.convs import list_convs
from models.patch_sizes import output_sides
from models.voxelwise import VoxelwiseNetwork
from tests.helpers.networks import trained

OPTIONS = {
    "unet": {"widths": (2, 3), "kernel_size": 3},
    "fcn": {"widths": (2, 3), "output_stride": 2, "dense_widths": (4,), "dense_kernel_size": 3},
    "deepmedic": {"widths": (2, 2, 3), "classifier_widths": (4,), "residual": True},
}
# Other forms, whose margins and grids are others; in three dimensions they take long and show nothing new.
OTHERS = [
    ("unet", 2, {"widths": (2, 3, 4)}),
    ("unet", 2, {"widths": (2, 3, 3), "kernel_size": 5, "upsampling": "interpolate"}),
    ("unet", 2, {"convs_per_level": 1}),
    ("fcn", 2, {"widths": (2, 3, 3), "output_stride": 8}),
    ("fcn", 2, {"widths": (2, 3), "output_stride": 4, "convs_per_level": (1, 2), "kernel_size": 5}),
    ("deepmedic", 2, {"widths": (3, 3), "scales": (1, 2, 3)}),
    ("deepmedic", 2, {"widths": (3, 3), "scales": (1,), "classifier_widths": ()}),
]
FORMS = [*((name, dimensions, {}) for name in OPTIONS for dimensions in (2, 3)), *OTHERS]

every_network = pytest.mark.parametrize("name", OPTIONS)
every_form = pytest.mark.parametrize(("name", "dimensions", "options"), FORMS)
every_dimensions = pytest.mark.parametrize("dimensions", [2, 3])


def build(name: str, dimensions: int = 2, conv="standard", **options) -> VoxelwiseNetwork:
    options = {"in_channels": 2, "num_classes": 3, **OPTIONS[name], **options}
    return create_model(name, conv, dimensions=dimensions, **options)


def pair(name: str, dimensions: int, padding: str, **options) -> tuple[VoxelwiseNetwork, VoxelwiseNetwork]:
    """The network with padding "same" and with another one, with the same weights, in float64."""
    same, other = build(name, dimensions, **options), build(name, dimensions, padding=padding, **options)
    trained(same).double()
    other.double().eval().load_state_dict(same.state_dict())
    return same, other


def images(*sides: int, count: int = 1) -> Tensor:
    return torch.randn(count, 2, *sides, dtype=torch.float64)


def cut(x: Tensor, start: int, length: int) -> Tensor:
    """As many voxels from `start` on along each spatial axis."""
    return x[(..., *[slice(start, start + length)] * (x.ndim - 2))]


def centre(x: Tensor, margin: int) -> Tensor:
    return cut(x, margin, x.shape[2] - 2 * margin)


# Padding.


@every_form
def test_valid_is_same_inside_the_margin(name, dimensions, options):
    """Where the blocks of both coincide, which the first output voxel decides; see `VoxelwiseNetwork`."""
    same, valid = pair(name, dimensions, "valid", **options)
    margin, multiple = valid.margin, valid.multiple
    side = output_sides(valid, near=8 if dimensions == 2 else 1, count=1)[0]
    start = margin + -(margin + valid.grid_start) % multiple
    x = images(*[start + side + margin] * dimensions)
    logits = valid(cut(x, start - margin, side + 2 * margin))
    assert logits.shape == (1, 3, *[side] * dimensions)
    torch.testing.assert_close(logits, cut(same(x), start, side), rtol=0, atol=1e-10)
    assert logits.std() > 0.01


@every_form
def test_the_same_input_has_the_same_blocks(name, dimensions, options):
    """Of all but a U-Net whose levels lose a fraction of a block, as the original's do."""
    same, valid = pair(name, dimensions, "valid", **options)
    side = output_sides(valid, near=valid.multiple, count=1)[0]
    x = images(*[side + 2 * valid.margin] * dimensions)
    if valid.grid_start == 0:
        torch.testing.assert_close(valid(x), centre(same(x), valid.margin))
    else:
        assert name == "unet"


@every_form
def test_tiles_give_the_whole(name, dimensions, options):
    _, valid = pair(name, dimensions, "valid", **options)
    tile = output_sides(valid, near=valid.multiple, count=1)[0]
    step = valid.multiple
    side = next(side for side in range(tile + step, tile + 3 * step) if valid.fits(side))
    x = images(*[side + 2 * valid.margin] * dimensions)
    whole = valid(x)
    for start in range(0, side - tile + 1, step):
        part = valid(cut(x, start, tile + 2 * valid.margin))
        torch.testing.assert_close(part, cut(whole, start, tile), rtol=0, atol=1e-10)


@every_dimensions
@every_network
def test_mirror_is_valid_on_a_mirrored_image(name, dimensions):
    _, mirror = pair(name, dimensions, "mirror")
    valid = build(name, dimensions, padding="valid").double().eval()
    valid.load_state_dict(mirror.state_dict())
    side = next(side for side in count_up(valid.margin + 1) if valid.fits(side))
    x = images(*[side] * dimensions)
    assert (mirror.margin, mirror.mirrored, valid.mirrored) == (0, valid.margin, 0)
    mirrored = F.pad(x, [valid.margin] * (2 * dimensions), mode="reflect")
    torch.testing.assert_close(mirror(x), valid(mirrored))


@pytest.mark.parametrize(
    ("padding", "sides"), [("same", (21, 30)), ("same", (7, 8, 5)), ("mirror", (21, 30)), ("mirror", (28, 23))]
)
@every_network
def test_logits_have_the_size_of_any_image(name, padding, sides):
    network = build(name, len(sides), padding=padding).double().eval()
    assert network(images(*sides)).shape == (1, 3, *sides)
    assert network.margin == 0
    assert all(network.fits(side) for side in range(1, 50))


@every_dimensions
@every_network
def test_a_single_voxel_is_an_image(name, dimensions):
    assert build(name, dimensions).double().eval()(images(*[1] * dimensions)).isfinite().all()


# Voxel-wise classification.


@every_dimensions
@pytest.mark.parametrize("padding", ["same", "valid"])
@every_network
def test_features_are_extracted_and_then_classified(name, padding, dimensions):
    network = trained(build(name, dimensions, padding=padding)).double()
    side = output_sides(network, near=1 if padding == "valid" else 12, count=1)[0]
    x = images(*[side + 2 * network.margin] * dimensions)
    torch.testing.assert_close(network.classify(network.extract(x)), network(x), rtol=0, atol=0)


@every_network
def test_shifts_by_a_block_shift_the_logits(name):
    network = trained(build(name)).double()
    field = build(name, padding="valid").margin + network.multiple
    x = images(2 * field + 13, 2 * field + 12)
    whole = network(x)
    for shift, commutes in ((network.multiple, True), (1, False)):
        shifted = network(x[..., shift:, :])
        inside = slice(field, field + 9)
        agree = torch.allclose(shifted[..., inside, inside], whole[..., shift:, :][..., inside, inside])
        assert agree == commutes


# One definition.


@every_network
def test_two_and_three_dimensions_are_one_definition(name):
    images_state, volumes_state = (build(name, dimensions).state_dict() for dimensions in (2, 3))
    assert list(images_state) == list(volumes_state)
    assert all(
        volume.ndim - image.ndim in (0, 1)
        for image, volume in zip(images_state.values(), volumes_state.values(), strict=True)
    )


@every_network
def test_a_volume_of_equal_slices_is_an_image(name):
    """Filters of which only the central slice counts see slices as images."""
    flat, deep = trained(build(name, 2)).double(), trained(build(name, 3)).double()
    weights = flat.state_dict()
    for key, volume in deep.state_dict().items():
        if volume.ndim < 5:
            volume.copy_(weights[key])
        elif volume.shape[2] % 2:
            volume.zero_()[:, :, volume.shape[2] // 2] = weights[key]
        else:  # upsampling by a stride: every output slice has this many taps of the kernel
            taps = 1 if volume.shape[2] == 2 and name == "unet" else 2
            volume.copy_((weights[key] / taps)[:, :, None].expand_as(volume))
    x = images(12, 12)
    # Beyond the border slices count as zeros, in upsampled scores too: the central ones are far enough from there.
    volume = deep(x[:, :, None].expand(-1, -1, 36, -1, -1))
    torch.testing.assert_close(volume[:, :, 18], flat(x))


@pytest.mark.parametrize("conv", list_convs(dimensions=3))
@pytest.mark.parametrize(
    ("name", "dimensions"),
    [("unet", 3), ("fcn", 2), ("fcn", 3), ("deepmedic", 2), ("deepmedic", 3)],  # test_unet.py: the U-Net of images
)
def test_a_step_reaches_every_parameter(name, dimensions, conv):
    conv = {"name": "gaussian", "num_bases": 2, "order": 2} if conv == "gaussian" else conv
    widths = {"unet": (4, 4), "fcn": (4, 4), "deepmedic": (4, 4, 4)}[name]
    network = build(name, dimensions, conv, widths=widths, norm="group").double()
    sides = (9, 7) if dimensions == 2 else (5, 6, 4)
    labels = torch.randint(3, (2, *sides))
    F.cross_entropy(network(images(*sides, count=2)), labels).backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


@every_network
def test_layers_of_volumes_chosen_by_pattern(name):
    plain = build(name, 3)
    network = build(name, 3, "depthwise_separable", conv_layers="*convs.1")
    assert 0 < sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in plain.parameters())
    with torch.device("meta"):
        assert network.to("meta")(torch.empty(1, 2, 9, 9, 9)).shape == (1, 3, 9, 9, 9)


@every_network
def test_weights_go_through_a_file(name):
    network, other = trained(build(name, 3)), build(name, 3).eval()
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    x = images(9, 9, 9).float()
    torch.testing.assert_close(other(x), network(x), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "padding"), [("fcn", "mirror"), ("deepmedic", "same")])  # test_unet.py: the U-Net
def test_compiles_without_graph_breaks(name, padding):
    torch.compiler.reset()  # all networks share a forward pass, which may be compiled a few times only
    network = trained(build(name, padding=padding))
    x = images(network.mirrored + 7, network.mirrored + 8).float()
    expected = copy.deepcopy(network)(x)
    network.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("padding", ["same", "valid", "mirror"])
@every_network
def test_says_which_image_it_takes(name, padding):
    with torch.device("meta"):
        network = build(name, 3, padding=padding)
        assert network(torch.empty(1, *network.image_shape)).shape[1] == 3
    assert network.image_shape[0] == 2


@every_network
def test_pathways_are_modules_of_the_network(name):
    network = build(name)
    names = {"unet": ["stride 1", "stride 2"], "fcn": ["stride 2", "stride 4"], "deepmedic": ["scale 1", "scale 3"]}
    assert list(network.pathways()) == names[name]
    assert set(network.pathways().values()) <= set(network.modules())


# Errors.


@every_network
def test_images_are_no_volumes(name):
    with pytest.raises(ValueError, match=r"takes inputs \(N, C, X, Y, Z\), got 2 spatial axes: .* dimensions to 2"):
        build(name, 3)(torch.empty(1, 2, 9, 9))
    with pytest.raises(ValueError, match=r"takes inputs \(N, C, H, W\), got 3 spatial axes"):
        build(name, 2)(torch.empty(1, 2, 9, 9, 9))


@every_dimensions
@every_network
def test_a_valid_network_names_the_nearest_sizes(name, dimensions):
    network = build(name, dimensions, padding="valid").to("meta")
    below, above = output_sides(network, near=101, count=2)
    assert below < 101 < above
    margin = 2 * network.margin
    message = (
        rf"no output of 101 a side \(input {101 + margin}\).* takes {below} \(input {below + margin}\) or {above} "
    )
    with pytest.raises(ValueError, match=message):
        network(torch.empty(1, 2, *[101 + margin] * dimensions, device="meta"))
    with pytest.raises(ValueError, match=rf"takes {output_sides(network, 1, 2)[0]} \(input"):
        network(torch.empty(1, 2, *[margin] * dimensions, device="meta"))


@every_network
def test_a_mirror_image_is_smaller_than_the_image(name):
    network = build(name, padding="mirror").double().eval()
    least = network.mirrored + 1
    assert network(images(least, least)).shape[2:] == (least, least)
    with pytest.raises(ValueError, match=f"images of {least} or more a side, got"):
        network(images(least, least - 1))


@pytest.mark.parametrize("conv", ["standard", "octave"])
@every_network
def test_instance_norm_needs_more_than_a_value(name, conv):
    network = build(name, conv=conv, norm="instance").double()
    least = network.smallest
    assert least == {"unet": 5, "fcn": 9, "deepmedic": 7}[name]
    assert network(images(1, least)).shape[2:] == (1, least)
    with pytest.raises(ValueError, match=rf"with a side of {least} or more.*got \({least - 1}, 2\)"):
        network(images(least - 1, 2))


@pytest.mark.parametrize("padding", ["valid", "mirror"])
@every_dimensions
@every_network
def test_octave_convolutions_must_pad(name, dimensions, padding):
    with pytest.raises(ValueError, match=f"padding '{padding}' .* an octave convolution keeps its two grids aligned"):
        build(name, dimensions, "octave", padding=padding)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 4}, "dimensions must be 2, for images, or 3, for volumes, got 4"),
        ({"padding": "vaild"}, "Did you mean 'valid'"),
        ({"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
        ({"norm": "bacth"}, "Did you mean 'batch'"),
        ({"conv": {"name": "standard", "kernel_size": 5}, "padding": "valid"}, "give it as the network's kernel_size"),
        ({"conv": "rfnn", "dimensions": 3}, "conv 'rfnn' is for images and has no 3-D form"),
    ],
)
@every_network
def test_impossible_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)
