"""Conversion rules: their tensor name, our array, and the change of axes between them.

A rule holds for both directions. The names of a file and the arrays of a tree are checked against
the whole table first: each is used exactly once, and whatever is missing, unknown or of another
shape is named. What happens to the numbers is a change of axes, never arithmetic, so conversion
there and back gives the same bits.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import ml_dtypes
import numpy as np

from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.interop.torch_format.pickle import Slot
from cogview_jax.runtime.errors import InputError

#: The types weights may have.
TYPES = tuple(map(np.dtype, ("float16", ml_dtypes.bfloat16, "float32", "float64")))
#: So many names of a kind are listed in a complaint.
LISTED = 3


@dataclass(frozen=True)
class AxisTransform:
    """How an array changes: ours has their axes in the order `axes`.

    thirds: ours then has its last axis split in (3, width): queries, keys, values. spatial: theirs
    has two more axes of length 1 at its end, being a 1x1 convolution.
    """

    axes: tuple[int, ...]
    thirds: bool = False
    spatial: bool = False

    def ours(self, array: np.ndarray) -> np.ndarray:
        """An array of theirs in our form, as a view."""
        array = array[..., 0, 0] if self.spatial else array
        array = array.transpose(self.axes)
        return array.reshape(*array.shape[:-1], 3, -1) if self.thirds else array

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """One of our arrays in their form, as a view."""
        array = array.reshape(*array.shape[:-2], -1) if self.thirds else array
        array = array.transpose(np.argsort(self.axes))
        return array[..., None, None] if self.spatial else array

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Their shape of an array of ours."""
        return self.theirs(np.broadcast_to(np.int8(0), shape)).shape


SAME, TABLE = AxisTransform((0,)), AxisTransform((0, 1))
#: Linear maps are stored output by input there, input by output here.
LINEAR = AxisTransform((1, 0))
FUSED, FUSED_BIAS = AxisTransform((1, 0), thirds=True), AxisTransform((0,), thirds=True)
#: [out, in, h, w] and, transposed, [in, out, h, w] there; [h, w, in, out] here.
CONVOLUTION, TRANSPOSED = AxisTransform((2, 3, 1, 0)), AxisTransform((2, 3, 0, 1))
#: Codes are columns there, rows here.
COLUMNS = AxisTransform((1, 0))
#: A 1x1 convolution there, [out, in, 1, 1]; a linear map here, [in, out].
PROJECTION = AxisTransform((1, 0), spatial=True)


@runtime_checkable
class StoredTensor(Protocol):
    """A tensor in a file, not yet read: one of torch's, of safetensors, of a msgpack."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> np.dtype:
        """Its type; bfloat16 is that of ml_dtypes."""

    def read(self) -> np.ndarray:
        """Its values."""


class Rule(NamedTuple):
    """Their name, the dotted place in our tree, and the form.

    {} in the name stands for a layer, whose arrays are stacked along a first axis here.
    """

    theirs: str
    ours: str
    form: AxisTransform

    @property
    def stacked(self) -> bool:
        """Whether there is one tensor of theirs a layer."""
        return "{}" in self.theirs


class TensorSource(NamedTuple):
    """Where a tensor of theirs lies in our tree: its rule, its layer, its shape there."""

    rule: Rule
    layer: int | None
    shape: tuple[int, ...]


def tensor_sources(rules: Sequence[Rule], shapes: Mapping[str, Any]) -> dict[str, TensorSource]:
    """Their name -> source, in the order of the rules.

    Args:
        rules: the whole table; rules with layers stand together.
        shapes: our tree, its leaves with a `shape`.
    """
    ours = {name: tuple(leaf.shape) for name, leaf in flat(shapes).items()}
    targets = [rule.ours for rule in rules]
    assert sorted(targets) == sorted(ours), set(targets) ^ set(ours)
    found: dict[str, TensorSource] = {}
    stacked = [rule for rule in rules if rule.stacked]
    for rule in rules:
        shape = ours[rule.ours]
        if rule not in stacked:
            found[rule.theirs] = TensorSource(rule, None, rule.form.their_shape(shape))
        elif rule == stacked[0]:
            for layer in range(shape[0]):
                for each in stacked:
                    single = each.form.their_shape(ours[each.ours][1:])
                    found[each.theirs.format(layer)] = TensorSource(each, layer, single)
    return found


def to_ours(
    rules: Sequence[Rule], state: Mapping[str, Any], shapes: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Our tree of a state dict, every array a `Deferred` in the type it has there.

    Args:
        rules: see `tensor_sources`.
        state: their name -> tensor.
        shapes: see `tensor_sources`; what the tree has to be like.
        where: the file, for complaints.

    Raises:
        InputError: a name is missing, unknown, no tensor of floating-point numbers, or of another
            shape or type than it has to be.
    """
    wanted = tensor_sources(rules, shapes)
    _check_names(state, wanted, where)
    stacks: dict[str, list[StoredTensor]] = {rule.ours: [] for rule in rules}
    for name, source in wanted.items():
        tensor, stack = state[name], stacks[source.rule.ours]
        check_tensor(tensor, name, where)
        if tensor.shape != source.shape:
            raise InputError(
                f"{where}: {name} has shape {list(tensor.shape)}, expected {list(source.shape)}"
            )
        if stack and tensor.dtype != stack[0].dtype:
            raise InputError(
                f"{where}: {name} is {tensor.dtype}, but in layer 0 it is {stack[0].dtype}: layers"
                " are kept together, in one type"
            )
        stack.append(tensor)
    tree: dict[str, Any] = {}
    arrays = flat(shapes)
    for rule in rules:
        tensors = stacks[rule.ours]
        *path, last = rule.ours.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = Deferred(
            tuple(arrays[rule.ours].shape), tensors[0].dtype, _maker(rule, tensors)
        )
    return tree


def to_theirs(
    rules: Sequence[Rule], tree: Mapping[str, Any], prefix: str = ""
) -> tuple[dict[str, Slot], Iterator[tuple[Slot, np.ndarray]]]:
    """The state dict of our tree, and what its slots hold, with one array of ours in memory.

    Args:
        rules: see `tensor_sources`.
        tree: of `Deferred`s.
        prefix: in front of every name of theirs.
    """
    leaves = flat(tree)
    wanted = tensor_sources(rules, tree)
    slots = {
        name: Slot(source.shape, leaves[source.rule.ours].dtype) for name, source in wanted.items()
    }

    def arrays() -> Iterator[tuple[Slot, np.ndarray]]:
        for rule in rules:
            array = leaves[rule.ours].make()
            for name, source in wanted.items():
                if source.rule == rule:
                    single = array if source.layer is None else array[source.layer]
                    yield slots[name], rule.form.theirs(single)
            del array, single  # before the next is read

    return {prefix + name: slot for name, slot in slots.items()}, arrays()


def flat(tree: Any) -> dict[str, Any]:
    """Dotted name -> leaf."""
    leaves = jax.tree.leaves_with_path(tree)
    return {".".join(key.key for key in path): leaf for path, leaf in leaves}


def check_tensor(tensor: Any, name: str, where: str, axes: int | None = None) -> None:
    """Refuses what is no tensor of floating-point numbers, or has not so many axes."""
    if not isinstance(tensor, StoredTensor):
        raise InputError(f"{where}: {name} is no tensor")
    if tensor.dtype not in TYPES:
        raise InputError(
            f"{where}: {name} is {tensor.dtype}, expected one of {', '.join(map(str, TYPES))}"
        )
    if axes is not None and (len(tensor.shape) != axes or not math.prod(tensor.shape)):
        raise InputError(f"{where}: {name} has shape {list(tensor.shape)}, expected {axes} axes")


def required(state: Mapping[str, Any], name: str, axes: int, where: str) -> tuple[int, ...]:
    """The shape of a tensor that sizes are read from; InputError where it has none to read."""
    if name not in state:
        raise InputError(f"{where} lacks {name}, from which a size is read")
    check_tensor(state[name], name, where, axes)
    return state[name].shape


def _check_names(state: Mapping[str, Any], wanted: Mapping[str, TensorSource], where: str) -> None:
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    if missing or unknown:
        said = [f"lacks {_some(missing)}"] * bool(missing)
        said += [f"has {_some(unknown)}, which no rule knows"] * bool(unknown)
        raise InputError(f"{where} {' and '.join(said)}")


def _some(names: Sequence[Any]) -> str:
    more = f" and {len(names) - LISTED} more" * (len(names) > LISTED)
    return ", ".join(map(str, names[:LISTED])) + more


def _maker(rule: Rule, tensors: Sequence[StoredTensor]) -> Callable[[], np.ndarray]:
    """Makes our array of a rule's tensors: one, or one a layer."""

    def make() -> np.ndarray:
        first = rule.form.ours(tensors[0].read())
        if not rule.stacked:
            return np.ascontiguousarray(first)
        stack = np.empty((len(tensors), *first.shape), first.dtype)
        for layer, tensor in enumerate(tensors):
            stack[layer] = rule.form.ours(tensor.read())
        return stack

    return make
