"""Networks as after a training, without one."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def trained(network: nn.Module) -> nn.Module:
    """The network in eval mode, with statistics, gains, shifts and biases as after a training, and no zero weights."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    for name, parameter in network.named_parameters():
        if name.endswith("bias") or not parameter.count_nonzero():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()
