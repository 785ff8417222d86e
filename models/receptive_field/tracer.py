"""Follows the spatial structure of feature maps through a network's forward pass.

Every operation that the pass runs is seen, whichever module or function asked for it, and each resulting tensor gets a
note: which of its dimensions run over the image and which input positions each index depends on (`FeatureMap`). Tensors
that no input reached, such as weights and whatever is computed from them, carry none.

Where the spatial part of a network ends nothing is left to follow; the tensors behind it carry the last maps in front
of it (`Ended`):

- pooled: reduced over the image (global pooling, global response statistics). When such a tensor meets a feature map
  again (squeeze-and-excitation, an image-level branch) it is ignored, by convention: every map behind a gate would
  depend on the whole image. Normalisation statistics (group norm, softmax) are ignored for the same reason.
- mixed: positions combined in a way that is no sliding window (a dense layer over positions, attention, resampling by
  coordinates, any operation without a rule). Whatever is computed from it is mixed too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from models.receptive_field.axis import AxisMap
from models.receptive_field.feature_map import AxisMaps, Factor, FeatureMap, SpatialPartEnds, plain
from models.receptive_field.rules import Call, Rule, find_rule

# Results that take shape and type from a tensor, but no values.
_FACTORIES = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_")


@dataclass(frozen=True)
class Ended:
    """Note on a tensor behind the spatial part: the last maps in front of it, the operations that ended it, and how."""

    last_maps: frozenset[AxisMaps]
    by: frozenset[str]
    pooled: bool


Note = FeatureMap | Ended


class SpatialTracer(TorchDispatchMode):
    """Inside `with tracer:`, notes the spatial structure of all that is computed from `tracer.watch(images)`."""

    def __init__(self) -> None:
        super().__init__()
        self._notes = WeakTensorKeyDictionary()
        self._strides: dict[tuple[int, int], list[Fraction]] = defaultdict(list)
        self._axes: list[int] = []

    def watch(self, images: Tensor) -> None:
        """Notes images (N, C, *spatial axes) as the network's input."""
        self._axes = list(range(images.ndim - 2))
        spatial = [(Factor(images.shape[axis + 2], axis, AxisMap()),) for axis in self._axes]
        self._write(images, FeatureMap((plain(images.shape[0]), plain(images.shape[1]), *spatial)))

    def note(self, tensor: Tensor) -> Note | None:
        """The note on a tensor, None where no image reached it."""
        return self._notes.get(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # Before the call, which may write in place.
        notes = [note for note in map(self.note, _tensors((args, kwargs))) if note is not None]
        # What a fake tensor is asked about itself (`prim.device`) is no operation.
        if not notes or func.namespace == "prim":
            return func(*args, **kwargs)
        rule = find_rule(func)
        if rule is None:
            # A composite operation, which arrives whole in inference mode.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        arguments = _bind(func, args, kwargs)
        feature_maps = {name: self._feature_maps(value) for name, value in arguments.items()}
        result = func(*args, **kwargs)
        name = func._schema.name.split("::")[-1]
        outputs = _tensors(result)
        if not outputs or name.startswith(_FACTORIES):
            return result
        call = Call(arguments, feature_maps, [tuple(output.shape) for output in outputs], self._strides_at)
        for output, note in zip(outputs, self._follow(name.strip("_"), rule, call, notes), strict=True):
            if note is not None:
                self._write(output, note)
        return result

    def _follow(self, name: str, rule: Rule | None, call: Call, notes: Sequence[Note]) -> Sequence[Note | None]:
        ended = [note for note in notes if isinstance(note, Ended)]
        mixed = [note for note in ended if not note.pooled]
        if mixed or not call.feature_maps:
            return [_join(mixed or ended)] * len(call.shapes)
        try:
            if rule is None:
                raise SpatialPartEnds
            found = rule(call)
            results = found if isinstance(found, list) else [found] * len(call.shapes)
            for result, shape in zip(results, call.shapes, strict=True):
                if result is not None:
                    self._check(result, shape)
            return results
        # The two built-in ones: a form of the operation that its rule was not written for. The pass itself must go on.
        except (SpatialPartEnds, LookupError, ValueError) as end:
            last = frozenset().union(*(feature_map.last_maps for feature_map in call.feature_maps))
            pooled = isinstance(end, SpatialPartEnds) and end.pooled
            return [Ended(last, frozenset({name}), pooled)] * len(call.shapes)

    def _check(self, feature_map: FeatureMap, shape: tuple[int, ...]) -> None:
        complete = [factor.axis for factor in feature_map.spatial_factors] == self._axes
        if not complete or feature_map.shape != shape:
            raise SpatialPartEnds

    def _feature_maps(self, value: Any) -> list[FeatureMap]:
        return [note for note in map(self.note, _tensors(value)) if isinstance(note, FeatureMap)]

    def _strides_at(self, axis: int, size: int) -> Sequence[Fraction]:
        return self._strides[axis, size]

    def _write(self, tensor: Tensor, note: Note) -> None:
        self._notes[tensor] = note
        if isinstance(note, Ended):
            return
        for factor in note.spatial_factors:
            strides = self._strides[factor.axis, factor.size]
            if factor.reads is not None and factor.reads.stride not in strides:
                strides.append(factor.reads.stride)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bind(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of an operator by name, defaults included."""
    parameters = func._schema.arguments
    bound = {parameter.name: parameter.default_value for parameter in parameters}
    bound.update(zip(bound, args, strict=False))
    return bound | kwargs


def _join(notes: Sequence[Ended]) -> Ended:
    last = frozenset().union(*(note.last_maps for note in notes))
    by = frozenset().union(*(note.by for note in notes))
    return Ended(last, by, all(note.pooled for note in notes))
