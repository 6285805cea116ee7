"""Parameters as one tree a layer, the form in which a trained model computes.

Training keeps the parameters of all layers stacked, as `nn.scan` makes them; see
`models.transformer`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cogview_jax.models.linear import TRANSPOSED, transpose_for_matvec
from cogview_jax.runtime.hardware import trim_heap


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Splits stacked parameters into one tree a layer, so that decoding slices no stacked array.

    Args:
        params: the parameters of a `Transformer`, in which each array of `blocks` has a first axis
            of layers.

    Returns:
        The same parameters, where `blocks` is a tuple with the parameters of one `Block` a layer.
    """
    stacked = params["blocks"]["block"]
    layers = len(jax.tree.leaves(stacked)[0])
    blocks = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(layers))
    return {**params, "blocks": blocks}


def prepare_decode_params(params: Any) -> Any:
    """Brings parameters, or a part of them, into the form that decodes fastest.

    The parameters come from `unstack_layers`. If they lie on a single CPU device, every kernel is
    replaced by the result of `linear.transpose_for_matvec`. On other devices the parameters stay as
    they are. NumPy arrays count as being on jax's first device.
    """
    leaf = jax.tree.leaves(params)[0]
    devices = leaf.devices() if isinstance(leaf, jax.Array) else jax.devices()[:1]
    alone = len(devices) == 1 and all(device.platform == "cpu" for device in devices)
    return transpose_kernels(params) if alone else params


def transpose_kernels(params: Any) -> Any:
    """Replaces every kernel of a tree by the result of `linear.transpose_for_matvec`."""
    if isinstance(params, tuple):
        return tuple(transpose_kernels(value) for value in params)
    if not isinstance(params, Mapping):
        return params
    kernels = {TRANSPOSED: transpose_for_matvec(params["kernel"])} if "kernel" in params else {}
    rest = {name: transpose_kernels(value) for name, value in params.items() if name != "kernel"}
    return kernels | rest


def unstack_arrays(arrays: Iterable[tuple[Sequence[str], Any]]) -> dict[str, Any]:
    """Does what `prepare_decode_params(unstack_layers(params))` does, one array at a time.

    Only one array is in memory in both forms, provided that the caller holds no other. Arrays of
    NumPy, and those that lie on a CPU, are split and transposed by NumPy and then put on jax's
    first device: jax would compile several programs for each shape.

    Args:
        arrays: the keys and the array of every parameter, stacked by layer, as `stacked_arrays` or
            `checkpoints.stored_tree.restore_each` gives them.
    """
    params: Any = {}
    for keys, array in arrays:
        tree = _on_host(array)
        for key in reversed(keys):
            tree = {key: tree}
        tree = prepare_decode_params(unstack_layers(tree) if "blocks" in tree else tree)
        params = _merge(params, jax.tree.map(_on_device, tree))
        del array, tree
        trim_heap()
    return params


def _on_host(array: Any) -> Any:
    """The array as one of NumPy, without a copy, where it lies on a single CPU device."""
    on_cpu = isinstance(array, jax.Array) and {d.platform for d in array.devices()} == {"cpu"}
    return np.asarray(array) if on_cpu and len(array.devices()) == 1 else array


def _on_device(leaf: Any) -> jax.Array:
    return jax.device_put(leaf, jax.local_devices()[0]) if isinstance(leaf, np.ndarray) else leaf


def stacked_arrays(params: Mapping[str, Any]) -> Iterable[tuple[Sequence[str], Any]]:
    """Yields the keys and the array of every parameter, as `unstack_arrays` reads them."""
    for keys, array in jax.tree_util.tree_leaves_with_path(params):
        yield tuple(key.key for key in keys), array


def _merge(one: Any, other: Any) -> Any:
    """Joins two trees of the same layers, each of which has arrays that the other lacks."""
    if not one:
        return other
    if isinstance(one, tuple):
        return tuple(_merge(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    both = {key: _merge(one[key], other[key]) for key in one.keys() & other.keys()}
    return {**one, **other, **both}
