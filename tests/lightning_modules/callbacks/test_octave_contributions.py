"""The two parts of an octave generator's image."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lightning_modules.callbacks import OctaveContributions
from lightning_modules.callbacks.octave_contributions import exit_layer, only_member
from models.convs.octave.pair import HIGH, LOW
from tests.helpers.tiny_gans import OCTAVE, gan_data, tiny_gan
from tests.helpers.tiny_runs import tiny_trainer


@pytest.fixture
def task():
    return tiny_gan(conv=OCTAVE, ema_decay=0.9)


def parts(task, latents):
    layer = exit_layer(task.sampler)
    images = []
    for member in (HIGH, LOW):
        with only_member(layer, member):
            images.append(task.generate(latents))
    return images


def test_the_parts_add_up_before_tanh(task):
    latents = task.evaluation_latents(0, 3)
    high, low = parts(task, latents)
    torch.testing.assert_close((high.atanh() + low.atanh()).tanh(), task.generate(latents))
    assert (high != low).any()


def test_a_part_is_the_path_of_its_member(task):
    """W_hh * high and upsample(W_lh * low), from what the exit layer is given."""
    layer, latents, seen = exit_layer(task.sampler), task.evaluation_latents(0, 3), []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    task.generate(latents)
    hook.remove()
    (pair,) = seen
    from_high, from_low = layer.weight.detach().split(layer.in_split, 1)
    expected = F.conv2d(pair.high, from_high, padding=1), F.conv2d(pair.low, from_low, padding=1)
    high, low = parts(task, latents)
    torch.testing.assert_close(high, expected[0].tanh())
    torch.testing.assert_close(low, F.interpolate(expected[1].tanh(), scale_factor=2))


def test_nothing_is_left_behind(task):
    latents = task.evaluation_latents(0, 2)
    before = task.generate(latents)
    with pytest.raises(KeyError), only_member(exit_layer(task.sampler), HIGH):
        raise KeyError
    assert torch.equal(task.generate(latents), before)


def test_a_compiled_generator_has_parts_too():
    task = tiny_gan(conv=OCTAVE)
    latents = task.evaluation_latents(0, 2)
    high, low = parts(task, latents)
    torch._dynamo.reset()
    task.network.compile(backend="eager")
    compiled = task.generate(latents)
    torch.testing.assert_close(parts(task, latents), [high, low])
    torch.testing.assert_close(task.generate(latents), compiled)


@pytest.mark.parametrize(
    ("conv", "drawn"),
    [(OCTAVE, True), ("standard", False), ({"name": "octave", "alpha": 1.0}, False), ("gaussian", False)],
    ids=["octave", "standard", "low alone", "gaussian"],
)
def test_drawn_where_there_are_two_parts(tmp_path, conv, drawn):
    tiny_trainer(tmp_path, [OctaveContributions()], max_epochs=1).fit(tiny_gan(conv=conv), datamodule=gan_data())
    assert (tmp_path / "media" / "octave_contributions.png").exists() == drawn


def test_impossible_number_of_samples():
    with pytest.raises(ValueError, match="columns must be 1 or more"):
        OctaveContributions(columns=0)
