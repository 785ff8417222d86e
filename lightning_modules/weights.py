"""What a network starts from: weights of a file, but in the layers that keep their own initialisation."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_modules.files import CheckpointError, read_checkpoint, read_torch_file
from lightning_modules.runs import Run
from models import create_model
from models.convs import SynthesisedConv
from models.names import matches

LISTED = 10  # names of a kind in a message
TASK_PREFIX = "network."  # of the network in the checkpoints of this suite
STARTED_FROM = "init_from_sha256"  # key of checkpoints
WRAPPER_PREFIX = "module."  # of a network in DataParallel or DistributedDataParallel


class MissingStartError(CheckpointError):
    """What a network is to start from is not there."""


@dataclass(frozen=True)
class StartingPoint:
    """Weights of a file for a network.

    Args:
        file: A checkpoint of this suite, the folder of a finished run (its best checkpoint, or the last), or a state
            dict as torch saves it, by itself or under "state_dict"; for a network that knows them (`in_own_names`) also
            what its authors publish.
        skip: Shell-style patterns of what keeps its own initialisation, or, where only the file has it, is left out.
        fit: Fit the skipped layers that synthesise their filters to those that the file has in their place.
    """

    file: Path
    skip: tuple[str, ...] = ()
    fit: bool = False

    def check(self, network: nn.Module) -> None:
        """Raise `ValueError` where `fit` would have nothing to do, or a frozen parameter would stay random."""
        fitted = self._fitted_layers(network)
        random = [
            name
            for name, parameter in network.named_parameters()
            if not parameter.requires_grad and matches(name, self.skip) and name.rpartition(".")[0] not in fitted
        ]
        if random:
            raise ValueError(
                f"init_skip leaves {_listed(random)} at a random start, and trainable or freeze_batch_norm freezes it "
                "there: name it in trainable too, or leave freeze_batch_norm out"
            )
        if self.fit and not fitted:
            synthesised = [name for name, layer in network.named_modules() if isinstance(layer, SynthesisedConv)]
            raise ValueError(
                "fit_replaced fits layers that synthesise their filters and are named by init_skip "
                f"({list(self.skip)}), but there is none. Layers of the network that do: "
                f"{', '.join(synthesised[:LISTED]) or 'none'}. Name one in init_skip, or set fit_replaced to false."
            )

    def find(self) -> Path:
        """The file to read.

        Raises:
            MissingStartError: There is none.
            CheckpointError: It is a run that is not finished.
        """
        if not self.file.is_dir():
            if not self.file.is_file():
                raise MissingStartError(
                    f"init_from: there is no file or run {self.file}: make it first, or set init_from to another"
                )
            return self.file
        run = Run(self.file)
        if not run.is_finished:
            raise CheckpointError(
                f"init_from: {self.file} is no finished run: finish it first, or name one of its checkpoints"
            )
        return run.checkpoint()

    def check_unchanged(self, checkpoint: Path) -> None:
        """Raise `ValueError` where the file is there, and is not what the run of `checkpoint` started from."""
        if not self.file.exists():
            return
        started_from = read_checkpoint(checkpoint).get(STARTED_FROM)
        if started_from is not None and started_from != _sha256(self.find()):
            raise ValueError(
                f"init_from: {self.file} has changed since this run started from it. To start anew, choose another run "
                "folder (--trainer.default_root_dir), or remove this one."
            )

    def load(self, network: nn.Module) -> str:
        """Load the weights into `network`, and say so in one line. Returns the SHA-256 of the file.

        Raises:
            CheckpointError: The file is missing, damaged, or holds more than tensors and plain data.
            ValueError: Weights of another network; the message lists what differs.
        """
        file = self.find()
        weights, sha256 = in_own_names(network, read_weights(file)), _sha256(file)
        load_weights(network, weights, self.skip, source=str(file))
        said = [f"weights of {file} (sha256 {sha256[:12]})", *self._not_read(network, weights)]
        for name, layer in self._fitted_layers(network).items():
            residual = fit_layer(name, layer, weights, source=str(file))
            said.append(f"{name} fitted to its filters (relative residual {residual:.2g})")
        rank_zero_info("; ".join(said))
        return sha256

    def _not_read(self, network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[str]:
        """Every name that `skip` keeps from being read, on both sides, in words."""
        own, fitted = network.state_dict(), self._fitted_layers(network)
        skipped = [name for name in {**own, **weights} if matches(name, self.skip)]
        skipped = [name for name in skipped if name.rpartition(".")[0] not in fitted]
        if kept := [name for name in skipped if name in own]:
            yield f"at its own initialisation: {', '.join(kept)}"
        if unused := [name for name in skipped if name not in own]:
            yield f"left out: {', '.join(unused)}"

    def _fitted_layers(self, network: nn.Module) -> dict[str, SynthesisedConv]:
        if not self.fit:
            return {}
        return {
            name: layer
            for name, layer in network.named_modules()
            if isinstance(layer, SynthesisedConv)
            and all(matches(f"{name}.{key}", self.skip) for key in layer.state_dict() if key != "bias")
        }


def starting_point(file: str | None, skip: Sequence[str], fit: bool, is_pretrained: bool) -> StartingPoint | None:
    """What a task's `init_from`, `init_skip` and `fit_replaced` say; None without a file.

    Raises:
        ValueError: They contradict each other, or `pretrained` among the network's options.
    """
    if file is None:
        if skip or fit:
            raise ValueError(f"{'init_skip' if skip else 'fit_replaced'} says how init_from is read: set that too")
        return None
    if is_pretrained:
        raise ValueError("init_from and pretrained both say what the network starts from: leave one of them out")
    return StartingPoint(Path(file), tuple(skip), fit)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A network's state dict from `path`, on the CPU; nothing in the file is executed.

    Of a checkpoint of this suite it is that of the task's network (of a GAN the generator); a prefix "module." that all
    names share is taken off.

    Raises:
        CheckpointError: The file is missing, damaged, or holds something else.
    """
    try:
        content = read_torch_file(path, "file of weights")
    except CheckpointError as error:
        raise CheckpointError(f"init_from: {error}") from error
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(weights, Mapping) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise CheckpointError(f"init_from: {path} is a file of torch, but holds no state dict")
    if all(name.startswith(WRAPPER_PREFIX) for name in weights):
        weights = _below(weights, WRAPPER_PREFIX)
    return _below(weights, TASK_PREFIX) or dict(weights)


def in_own_names(network: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights` under the names of `network`, where they have those of its authors.

    A network may have a method `from_published(weights) -> dict[str, Tensor] | None` that gives the names of its own
    for theirs, or None where `weights` are no such thing.
    """
    convert = getattr(network, "from_published", None)
    converted = None if convert is None else convert(weights)
    return weights if converted is None else converted


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], skip: Sequence[str], source: str) -> None:
    """Copy `weights` into `network`, all but what the shell-style patterns `skip` match.

    A batch norm's count of batches may be missing, as in old files.

    Raises:
        ValueError: Names or shapes differ elsewhere, or a pattern matches nothing; the message lists it.
    """
    own = network.state_dict()
    for pattern in skip:
        if not any(matches(name, [pattern]) for name in (*own, *weights)):
            raise ValueError(f"init_skip: {pattern!r} matches nothing in the network, nor in {source}")
    wanted = [name for name in own if not matches(name, skip)]
    given = [name for name in weights if not matches(name, skip)]
    missing = [name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in given if name not in own]
    shapes = [name for name in wanted if name in weights and weights[name].shape != own[name].shape]
    if missing or unexpected or shapes:
        sizes = [f"{name} {tuple(weights[name].shape)} in place of {tuple(own[name].shape)}" for name in shapes]
        kinds = {"Missing there": missing, "Unexpected": unexpected, "Of other shapes": sizes}
        differences = ". ".join(f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names)
        raise ValueError(
            f"init_from: {source} does not fit the network{_suggestion([*missing, *unexpected, *shapes])}. "
            f"{differences}."
        )
    network.load_state_dict({name: weights[name] for name in wanted if name in weights}, strict=False)


def fit_layer(name: str, layer: SynthesisedConv, weights: Mapping[str, Tensor], source: str) -> float:
    """Fit `layer` to the filters `<name>.weight` (and bias) of `weights`; the relative residual.

    Raises:
        ValueError: There are no such filters, or the layer cannot take their place.
    """
    from models.convs.fitting import fit_filters

    if f"{name}.weight" not in weights:
        raise ValueError(f"fit_replaced: {source} has no filters {name}.weight for layer {name!r}")
    try:
        return fit_filters(layer, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
    except ValueError as error:
        raise ValueError(f"fit_replaced: layer {name!r}: {error}") from error


def load_pretrained(network: nn.Module, spec: Mapping[str, Any], seed: int) -> None:
    """Copy into `network` the weights of `create_model(**spec, pretrained=True)`; those of new layers follow the seed.

    Raises:
        ValueError: There are no such weights for these options.
        OSError: They cannot be had.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.load_state_dict(create_model(**{**spec, "pretrained": True}).state_dict())
    rank_zero_info(f"pretrained weights of {spec['name']}")


@torch.no_grad()
def share_weights(network: nn.Module) -> None:
    """Give every process the weights of the first: machines of different kinds round differently."""
    if not dist.is_available() or not dist.is_initialized():
        return
    for value in network.state_dict().values():
        shared = value.contiguous()
        dist.broadcast(shared, src=0)
        value.copy_(shared)


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _suggestion(names: Sequence[str]) -> str:
    layers = list(dict.fromkeys(f"{name.rpartition('.')[0]}.*" if "." in name else name for name in names))
    if len(layers) > LISTED:
        return " in many layers: these are rather weights of another network"
    return f". To start these layers anew (a head for other classes, say) set init_skip: {layers}"


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
