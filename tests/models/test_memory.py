import copy
import itertools

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from models import create_model
from models.memory import PeakMemory, measure_memory
from models.recompute import recomputed

SIZE = (2, 1, 24, 24)


def conv_stack(dimensions: int = 2) -> nn.Sequential:
    conv, norm, pool, transposed = (
        (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.ConvTranspose2d)
        if dimensions == 2
        else (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, nn.ConvTranspose3d)
    )
    return nn.Sequential(
        conv(1, 4, 3, padding=1), norm(4), nn.ReLU(), pool(2), conv(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(),
        nn.Dropout(), transposed(8, 3, 2, 2),
    )  # fmt: skip


def train(network, size, autocast=None):
    images = torch.randn(size)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        output = network(images)
    output.backward(torch.ones_like(output))


@torch.no_grad()
def infer(network, size):
    network(torch.randn(size))


@pytest.mark.parametrize(
    ("conv", "dimensions"), [("standard", 3), ("octave", 2), ({"name": "gaussian", "order": 2}, 2)]
)
def test_counts_what_real_passes_hold(conv, dimensions):
    network = create_model("unet", dimensions=dimensions, widths=(4, 8), kernel_size=3, conv=conv)
    size = (1, 1, *[16] * dimensions)
    memory = measure_memory(network, size)
    with PeakMemory() as training:
        train(network, size)
    with PeakMemory() as inference:
        infer(network.eval(), size)
    # A kernel may return an empty statistic where its fake returns a few values.
    assert memory.training == pytest.approx(training.peak, abs=1000)
    assert memory.inference == pytest.approx(inference.peak, abs=1000)


def allocated(step):
    """Bytes that torch's allocator on the CPU has given out: at the end, and the most at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = step()
    sizes = [event.nbytes() for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    del result
    return sum(sizes), max(itertools.accumulate(sizes))


def test_agrees_with_the_allocator():
    """Which also sees what kernels allocate for themselves, and free before they return."""
    network = conv_stack()
    memory = measure_memory(network, SIZE)

    def forward():
        images = torch.randn(SIZE)
        return images, network(images)

    assert allocated(forward)[0] == memory.kept
    assert memory.training <= allocated(lambda: train(network, SIZE))[1] < 2 * memory.training


def test_parts():
    network = conv_stack()
    memory = measure_memory(network, SIZE)
    parameters = 4 * sum(p.numel() for p in network.parameters())
    assert memory.gradients == parameters
    assert memory.weights == parameters + 4 * (4 + 4) + 8, "running mean and variance of 4 channels, and a count"
    assert memory.inference < memory.kept < memory.training


def test_half_as_much_in_mixed_precision():
    network = conv_stack()
    memory = measure_memory(network, SIZE, autocast=torch.bfloat16)
    with PeakMemory() as training:
        train(network, SIZE, torch.bfloat16)
    assert memory.training == pytest.approx(training.peak, rel=0.1)  # some kernels keep float32, their fakes do not
    assert 0.5 < memory.kept / measure_memory(network, SIZE).kept < 0.65


def test_an_input_of_any_size_costs_nothing():
    memory = measure_memory(conv_stack(3), (1, 1, 512, 512, 512))
    assert memory.training > 2**32
    small = measure_memory(conv_stack(3), (1, 1, 64, 64, 64))
    assert memory.inference == pytest.approx(512 * small.inference, rel=0.01)


def test_the_network_stays_as_it_was():
    network = conv_stack()
    network[1].eval()
    before = copy.deepcopy(network.state_dict())
    measure_memory(network, SIZE)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in network.parameters())
    assert [layer.training for layer in network][:3] == [True, False, True]


class Recomputing(nn.Module):
    def __init__(self, recomputes):
        super().__init__()
        self.recomputes = recomputes
        self.layers = nn.ModuleList([nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.SiLU()) for _ in range(6)])

    def forward(self, x):
        for layer in self.layers:
            x = recomputed(layer, x) if self.recomputes else layer(x)
        return x


def test_recomputing_is_seen():
    kept, less = (measure_memory(Recomputing(recomputes), (1, 1, 64, 64)).kept for recomputes in (False, True))
    image = 4 * 64 * 64
    assert less == pytest.approx(7 * image, abs=200)
    assert kept == pytest.approx(13 * image, abs=200)


def test_a_frozen_network_keeps_nothing():
    memory = measure_memory(conv_stack().requires_grad_(False), SIZE)
    assert memory.gradients == 0
    assert memory.kept < memory.inference


def test_an_input_that_does_not_go_in():
    with pytest.raises(ValueError, match=r"Sequential cannot take input_size \(1, 1, 2, 2\).*Kernel size"):
        measure_memory(nn.Sequential(nn.Conv2d(1, 1, 3)), (1, 1, 2, 2))
