"""The weights of exported programs: a flat dict of named arrays, an argument of every program.

Each part has a file: "codec" under the names of its parameters and of its quantiser's state, and
"transformer" with its parameters by layer, in the form that decodes fastest.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from cogview_jax.checkpoints.bundle import codec_shapes, transformer_shapes
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.interop.rules import flat
from cogview_jax.models.layer_params import stacked_arrays, transpose_kernels, unstack_layers
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.sharding import unbox


@dataclass(frozen=True)
class NamedWeights:
    """The arrays of a part, by name.

    Attributes:
        shapes: the shape and the type of each array.
        arrays: gives every name and its array, a few of them in memory at a time.
        tree: makes the tree that models read of such a dict, of arrays or of tracers.
    """

    shapes: Mapping[str, jax.ShapeDtypeStruct]
    arrays: Callable[[], Iterator[tuple[str, np.ndarray]]]
    tree: Callable[[Mapping[str, Any]], Any]


def codec_weights(part: CodecPart) -> NamedWeights:
    """The weights of an image tokenizer of `Deferred`s, in the types that it computes from."""
    shapes = unbox(codec_shapes(part.config))
    names, stored = flat(shapes), {"params": part.params, "codebook": part.codebook._asdict()}

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for name, leaf in flat(stored).items():
            yield name, leaf.make().astype(names[name].dtype, copy=False)

    def tree(named: Mapping[str, Any]) -> Any:
        return jax.tree.unflatten(jax.tree.structure(shapes), [named[name] for name in names])

    return NamedWeights(names, arrays, tree)


def transformer_weights(part: TransformerPart, model: Transformer) -> NamedWeights:
    """The weights of a transformer of `Deferred`s, in the type in which `model` computes."""
    dtype = model.policy.compute
    stacked = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), unbox(transformer_shapes(model))
    )
    shapes = jax.eval_shape(lambda params: transpose_kernels(unstack_layers(params)), stacked)

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for keys, leaf in stacked_arrays(part.params):
            yield from _layers_of(keys, leaf.make(), dtype)

    def tree(named: Mapping[str, Any]) -> Any:
        return jax.tree.unflatten(
            jax.tree.structure(shapes), [named[name] for name in _named(shapes)]
        )

    return NamedWeights(_named(shapes), arrays, tree)


def _layers_of(
    keys: Sequence[str], array: np.ndarray, dtype: DTypeLike
) -> Iterator[tuple[str, np.ndarray]]:
    """One array of stacked parameters as an array a layer, or itself; each with its name."""
    array = array.astype(dtype, copy=False)
    if keys[0] != "blocks":
        yield ".".join(keys), array
        return
    stack, _, *place = keys
    for number, layer in enumerate(array):
        tree: Any = layer
        for key in reversed(place):
            tree = {key: tree}
        for name, leaf in _named(transpose_kernels(tree)).items():
            yield f"{stack}.{number}.{name}", np.asarray(leaf)


def _named(tree: Any) -> dict[str, Any]:
    """Name -> leaf of a tree by layer, such as "blocks.0.attention.qkv.bias"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # A transposed kernel is in a tuple of one.
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".0"): leaf
        for path, leaf in leaves
    }
