"""Parameters with one tree a layer: the form in which a trained model computes.

Training keeps parameters stacked by layer, as `nn.scan` makes them; see `models.transformer`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from cogview_jax.models.linear import TRANSPOSED, transpose_for_matvec
from cogview_jax.runtime.hardware import trim_heap


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with one tree a layer, so that decoding slices no stacked array.

    `blocks` becomes a tuple of the parameters of `Block`.
    """
    stacked = params["blocks"]["block"]
    layers = len(jax.tree.leaves(stacked)[0])
    blocks = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(layers))
    return {**params, "blocks": blocks}


def prepare_decode_params(params: Any) -> Any:
    """Parameters from `unstack_layers`, or some of them, in the form that decodes fastest.

    Where they lie on a single CPU device, kernels become `linear.transpose_for_matvec`; elsewhere
    nothing changes. NumPy arrays go to jax's first device.
    """
    leaf = jax.tree.leaves(params)[0]
    devices = leaf.devices() if isinstance(leaf, jax.Array) else jax.devices()[:1]
    alone = len(devices) == 1 and all(device.platform == "cpu" for device in devices)
    return _transposed(params) if alone else params


def _transposed(params: Any) -> Any:
    if isinstance(params, tuple):
        return tuple(_transposed(value) for value in params)
    if not isinstance(params, Mapping):
        return params
    kernels = {TRANSPOSED: transpose_for_matvec(params["kernel"])} if "kernel" in params else {}
    rest = {name: _transposed(value) for name, value in params.items() if name != "kernel"}
    return kernels | rest


def layered(arrays: Iterable[tuple[Sequence[str], Any]]) -> dict[str, Any]:
    """`prepare_decode_params(unstack_layers(params))` of arrays that come one at a time.

    Only one of them is there in both forms, provided that nobody else holds them.

    Args:
        arrays: keys and array of every parameter, stacked by layer (`stacked_arrays`, or
            `checkpoints.stored_tree.restore_each`).
    """
    params: Any = {}
    for keys, array in arrays:
        tree = array
        for key in reversed(keys):
            tree = {key: tree}
        params = _merged(
            params, prepare_decode_params(unstack_layers(tree) if "blocks" in tree else tree)
        )
        del array, tree
        trim_heap()
    return params


def stacked_arrays(params: Mapping[str, Any]) -> Iterable[tuple[Sequence[str], Any]]:
    """Keys and array of every parameter, as `layered` reads them."""
    for keys, array in jax.tree_util.tree_leaves_with_path(params):
        yield tuple(key.key for key in keys), array


def _merged(one: Any, other: Any) -> Any:
    """Two trees of the same layers, each with arrays that the other lacks, as one."""
    if not one:
        return other
    if isinstance(one, tuple):
        return tuple(_merged(mine, theirs) for mine, theirs in zip(one, other, strict=True))
    both = {key: _merged(one[key], other[key]) for key in one.keys() & other.keys()}
    return {**one, **other, **both}
