"""A stored transformer with low-rank adapters (`models.lora`) merged into it, array by array."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.models.lora import (
    NEW_POSITIONS,
    LoRAConfig,
    adapter_pairs,
    fit_positions,
    merged_kernel,
)


def with_positions(params: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Stored parameters with `count` positions, or as many as frozen ones can be used for."""
    table = params["position_embedding"]
    rows = min(count, table.shape[0] + NEW_POSITIONS)
    fitted = Deferred(
        (rows, *table.shape[1:]), table.dtype, lambda: fit_positions(table.make(), rows)
    )
    return {**params, "position_embedding": fitted}


def merged_on_host(params: Any, adapters: Mapping[str, Any], lora: LoRAConfig) -> Any:
    """The parameters of `models.lora.merged`, each a `Deferred`: one is in memory at a time.

    Args:
        params: the frozen parameters, arrays or `Deferred`s, in any type; they count as rounded to
            `lora.base_dtype`.
        adapters: NumPy arrays, a tree as in `models.lora.initial_adapters`.
        lora: their settings.
    """
    pairs = {
        ".".join(("blocks", "block", *path, "kernel")): (a, b)
        for path, a, b in adapter_pairs(adapters["blocks"]["block"])
    }
    rounded = np.dtype(getattr(ml_dtypes, lora.base_dtype, lora.base_dtype))

    def deferred(keys: tuple[Any, ...], leaf: Any) -> Deferred:
        name = ".".join(key.key for key in keys)

        def make() -> np.ndarray:
            array = leaf.make() if isinstance(leaf, Deferred) else np.asarray(leaf)
            # A copy in any case: the caller may keep what it gets.
            array = np.array(array.astype(rounded), np.float32)
            for layer, a, b in zip(array, *pairs.get(name, ((), ())), strict=False):
                layer[...] = merged_kernel(layer, a, b, lora.scale)
            return array

        return Deferred(tuple(leaf.shape), np.dtype(np.float32), make)

    return jax.tree_util.tree_map_with_path(deferred, params)
