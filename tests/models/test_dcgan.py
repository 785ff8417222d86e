"""DCGAN: published sizes, initial weights that really are drawn, and what GAN training asks of a network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from models import create_model
from models.convs import list_convs

SMALL = {"image_size": 16, "base_width": 8}
FREE_FORM = ["standard", "depthwise_separable", "octave"]

every_variant = pytest.mark.parametrize("conv", list_convs())


def generator(conv="standard", **options) -> nn.Module:
    return create_model("dcgan_generator", conv, **{**SMALL, "latent_dim": 10, **options})


def discriminator(conv="standard", **options) -> nn.Module:
    return create_model("dcgan_discriminator", conv, **{**SMALL, **options})


def images(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 16, 16) * 2 - 1


@pytest.mark.parametrize("conv", ["standard", {"name": "octave", "alpha": 0.5}], ids=["standard", "octave"])
@pytest.mark.parametrize(("name", "parameters"), [("dcgan_generator", 2_404_128), ("dcgan_discriminator", 1_574_176)])
def test_published_parameter_counts(conv, name, parameters):
    network = create_model(name, conv, image_size=128)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@every_variant
@pytest.mark.parametrize("image_size", [16, 32])
def test_latents_to_images_to_logits(conv, image_size):
    check_sizes(conv, image_size)


@pytest.mark.parametrize("conv", ["standard", "octave"])
@pytest.mark.parametrize("image_size", [64, 128, 256])
def test_larger_images(conv, image_size):
    check_sizes(conv, image_size)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.99, 1.0])
def test_shares_of_low_channels(alpha):
    """The paper's LOW scheme is 0.99, since its implementation could not do 1."""
    check_sizes({"name": "octave", "alpha": alpha}, 64)


def check_sizes(conv: str | dict, image_size: int) -> None:
    sizes = {"image_size": image_size, "base_width": 2, "in_channels": 1}
    fakes = generator(conv, **sizes)(torch.randn(2, 10))
    assert fakes.shape == (2, 1, image_size, image_size)
    assert fakes.abs().max() <= 1
    network = discriminator(conv, **sizes)
    assert network(fakes).shape == (2,)
    assert network.forward_features(fakes).shape == (2, network.num_features, 4, 4)


def test_layers_are_those_of_the_paper():
    """An independent reading of the layers, from the state dict."""
    network, critic = generator(), discriminator()
    state, latents = network.state_dict(), torch.randn(3, 10)

    def normalised(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
        return F.batch_norm(x, None, None, weights[f"{name}.weight"], weights[f"{name}.bias"], training=True)

    x = F.relu(normalised(latents @ state["stem.0.weight"].T, state, "stem.1")).reshape(3, 16, 4, 4)
    x = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), state["convs.0.weight"], padding=1)
    x = F.relu(normalised(x, state, "norms.0"))
    x = F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), state["exit.weight"], padding=1)
    torch.testing.assert_close(network(latents), x.tanh())

    x, state = images(), critic.state_dict()
    expected = x
    for i in range(2):
        expected = F.conv2d(expected, state[f"convs.{i}.weight"], stride=2, padding=1)
        expected = F.leaky_relu(normalised(expected, state, f"norms.{i}"), 0.2)
    expected = F.conv2d(expected, state["exit.weight"], stride=2, padding=1)
    assert expected.shape == (3, 1, 2, 2)
    torch.testing.assert_close(critic(x), expected.flatten(1).mean(1))


@pytest.mark.parametrize("name", ["dcgan_generator", "dcgan_discriminator"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "image_size 100 .* nearest: 64 and 128"),
        ({"image_size": 127}, "nearest: 64 and 128"),
        ({"image_size": 129}, "nearest: 128 and 256"),
        ({"image_size": 8}, "nearest: 16$"),
        ({"image_size": 0}, "nearest: 16$"),
        ({"in_channels": 0}, "in_channels must be 1 or more, got 0"),
        ({"base_width": -1}, "base_width must be 1 or more"),
        ({"init": "as_publishd"}, "Did you mean 'as_published'"),
        ({"num_classes": 10}, "unknown option of model"),
    ],
)
def test_impossible_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_a_discriminator_refuses_images_of_another_size():
    with pytest.raises(ValueError, match=r"takes images \(3, 16, 16\), got a batch \(2, 3, 32, 32\)"):
        discriminator()(torch.zeros(2, 3, 32, 32))


def assert_drawn_as_described(network: nn.Module) -> None:
    for name, module in network.named_modules():
        for kind, parameter in module.named_parameters(prefix=name, recurse=False):
            if isinstance(module, _BatchNorm) and kind.endswith("bias"):
                assert parameter.abs().max() == 0, kind
                continue
            mean = 1.0 if isinstance(module, _BatchNorm) else 0.0
            tolerance = 4 * 0.02 / parameter.numel() ** 0.5  # four standard errors, of the mean and of the deviation
            assert parameter.mean().item() == pytest.approx(mean, abs=tolerance), kind
            assert parameter.std().item() == pytest.approx(0.02, abs=tolerance), kind


@pytest.mark.parametrize("conv", FREE_FORM)
@pytest.mark.parametrize("build", [generator, discriminator])
def test_every_layer_starts_as_described(build, conv):
    torch.manual_seed(0)
    network = build(conv, init="as_described", image_size=64, base_width=16)
    assert_drawn_as_described(network)


@pytest.mark.parametrize("build", [generator, discriminator])
def test_as_published_is_the_default_of_every_layer(build):
    """PyTorch's: uniform with deviation 1 / sqrt(3 fan_in), gains 1. That is far from 0.02 in each of these layers."""
    torch.manual_seed(0)
    network = build(image_size=64, base_width=16)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            expected = (3 * module.weight[0].numel()) ** -0.5
            assert abs(expected - 0.02) > 0.002
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert module.weight.abs().max() <= expected * 3**0.5
        if isinstance(module, _BatchNorm):
            assert module.weight.eq(1).all()
    with pytest.raises(AssertionError):
        assert_drawn_as_described(network)


@pytest.mark.parametrize("conv", ["depthwise_separable", "octave"])
def test_layers_chosen_by_pattern_start_as_described_too(conv):
    torch.manual_seed(0)
    network = generator(conv, conv_layers="convs.1", init="as_described", image_size=64, base_width=16)
    assert_drawn_as_described(network)


def test_structured_filters_have_no_free_form_weights_to_draw():
    with pytest.raises(ValueError, match=r"layer 'convs.0' \(GaussianDerivativeConv2d\) .* use init 'as_published'"):
        generator("gaussian", init="as_described")


@every_variant
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_gan_step_under_bfloat16_reaches_every_parameter(conv, memory_format):
    networks = [network(conv).to(memory_format=memory_format) for network in (generator, discriminator)]
    with torch.autocast("cpu", torch.bfloat16):
        logits = networks[1](networks[0](torch.randn(4, 10)))
    assert logits.dtype == torch.bfloat16
    F.softplus(-logits.float()).mean().backward()
    for network in networks:
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


@every_variant
def test_channels_last_all_through(conv):
    """A network in channels_last works in channels_last, from its first convolution on."""
    strided_otherwise = []

    def look(module: nn.Module, _, output) -> None:
        if output.dim() == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            strided_otherwise.append(type(module).__name__)

    networks = [network(conv).to(memory_format=torch.channels_last) for network in (generator, discriminator)]
    for module in [module for network in networks for module in network.modules()]:
        module.register_forward_hook(look)
    fakes = networks[0](torch.randn(4, 10))
    assert fakes.is_contiguous(memory_format=torch.channels_last)
    networks[1](fakes)
    assert not strided_otherwise


@pytest.mark.parametrize("conv", ["standard", "octave"])
def test_compiles_without_graph_breaks(conv):
    for network, x in ((generator(conv), torch.randn(3, 10)), (discriminator(conv), images())):
        expected = copy.deepcopy(network)(x)
        network.compile(backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(network(x), expected)


@every_variant
def test_gradient_penalty_reaches_every_weight(conv):
    network, x = discriminator(conv), images().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    gradient.flatten(1).norm(dim=1).sub(1).square().mean().backward()
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


@every_variant
def test_one_image_in_eval_mode(conv):
    network, critic = generator(conv).eval(), discriminator(conv).eval()
    latents = torch.randn(2, 10)
    torch.testing.assert_close(network(latents[:1]), network(latents)[:1])
    assert critic(images(1)).shape == (1,)


@pytest.mark.parametrize("conv", ["standard", {"name": "octave", "alpha": 0.5}])
def test_a_pooling_discriminator_has_the_same_parameters(conv):
    torch.manual_seed(0)
    strided = create_model("dcgan_discriminator", conv=conv, image_size=32, base_width=4)
    pooled = create_model("dcgan_discriminator", conv=conv, image_size=32, base_width=4, downsample="pool")
    pooled.load_state_dict(strided.state_dict())
    images = torch.randn(4, 3, 32, 32)
    same = torch.allclose(pooled(images), strided(images), atol=1e-6)
    assert same == (conv != "standard")  # a strided octave convolution pools anyway
