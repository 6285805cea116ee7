"""Low-rank adapters (LoRA) of the transformer's linear layers: y = x W + b + (alpha / r) (x A) B.

W [D, *F] is the kernel of a trained model, which stays as it is; A [D, r] and B [r, *F] are learned
(Hu et al. 2021, arXiv 2106.09685, section 4.1). B starts at 0, so an adapted model starts as the
model that it adapts, bit for bit.

`Linear` computes the low-rank path itself where its parameters hold A and B beside the kernel, so
no other module knows of adapters. The alternative, W + (alpha / r) A B inside the step, would need
the memory of a merged kernel and its gradient, and a product of A and B for every layer and part of
a batch. Both matrices reach `linear.matmul` as arguments, since a custom gradient that closes over
them fails.

Adapters are a tree like the parameters, in which a kernel and its bias are replaced by "lora_A" and
"lora_B", and everything without an adapter is left out. They are stacked by layer, as
`Transformer` scans: A is [L, D, r] and B is [L, r, *F].

Legend: L layers, D input width, F output shape, r rank.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from cogview_jax.models.linear import LORA_A, LORA_B
from cogview_jax.runtime.config import SettingError, require_range

ArrayT = TypeVar("ArrayT", jax.Array, np.ndarray)

#: The linear layers of a block. In layer I, `blocks.I.` stands before the name.
MODULES = ("attention.qkv", "attention.out", "mlp.up", "mlp.down")

#: A sequence may have so many positions more than the frozen model has learned.
NEW_POSITIONS = 8


@dataclass(frozen=True)
class LoRAConfig:
    """The section `lora`: finetunes small matrices beside a frozen model (arXiv 2106.09685).

    Attributes:
        rank: r, the inner width of an adapter; 0 trains the whole model instead.
        alpha: adapters are multiplied with alpha / rank.
        targets: the linear layers that get an adapter, in all layers of the model: those whose name
            is or ends with .NAME, of attention.qkv, attention.out, mlp.up and mlp.down. An adapter
            of qkv has one A for queries, keys and values.
        base_dtype: the type in which the frozen weights are kept, which is also that of their
            memory. Adapters are float32.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("qkv", "out", "up", "down")
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self):
        require_range(self, "rank", at_least=0, at_most=2**14)
        require_range(self, "alpha", above=0)
        if not self.targets:
            raise SettingError(f"targets is empty: choose from {_choices()}")
        for target in self.targets:
            if not any(_matches(name, target) for name in MODULES):
                raise SettingError(
                    f"targets = {self.targets!r}: no linear layer of a block has the name"
                    f" {target!r}; choose from {_choices()}"
                )

    @property
    def scale(self) -> float:
        """What the product of A and B is multiplied with."""
        return self.alpha / self.rank

    @property
    def modules(self) -> tuple[str, ...]:
        """The names in `MODULES` that get an adapter."""
        return tuple(
            name for name in MODULES if any(_matches(name, target) for target in self.targets)
        )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _choices() -> str:
    return ", ".join(name.rpartition(".")[2] for name in MODULES) + f" ({', '.join(MODULES)})"


def adapter_shapes(params: Mapping[str, Any], config: LoRAConfig) -> dict[str, Any]:
    """The shapes of adapters, float32, a tree as in `initial_adapters`.

    Args:
        params: the parameters of a `Transformer`, or anything with their shapes.
        config: says which kernels get an adapter, and of what rank.
    """
    block = params["blocks"]["block"]
    adapters: dict[str, Any] = {}
    for name in config.modules:
        branch, layer = name.split(".")
        layers, width, *features = block[branch][layer]["kernel"].shape
        adapters.setdefault(branch, {})[layer] = {
            LORA_A: jax.ShapeDtypeStruct((layers, width, config.rank), jnp.float32),
            LORA_B: jax.ShapeDtypeStruct((layers, config.rank, *features), jnp.float32),
        }
    return {"blocks": {"block": adapters}}


def initial_adapters(
    key: Key[Array, ""], params: Mapping[str, Any], config: LoRAConfig
) -> dict[str, Any]:
    """Adapters before step 0, boxed with their logical axis names.

    A is uniform between -1 / sqrt(D) and 1 / sqrt(D), as in PEFT, and B is 0. The one wide axis of
    each is split over the devices that share the parameters.

    Args:
        key: of the random numbers.
        params: the parameters of a `Transformer`, or anything with their shapes.
        config: says which kernels get an adapter, and of what rank.
    """
    shapes = adapter_shapes(params, config)
    numbers = itertools.count()

    def start(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Any:
        if path[-1].key == LORA_B:
            narrow = (None,) * (leaf.ndim - 2)
            return nn.LogicallyPartitioned(jnp.zeros(leaf.shape), ("layers", *narrow, "adapter"))
        bound = 1 / math.sqrt(leaf.shape[1])
        own = jax.random.fold_in(key, next(numbers))
        values = jax.random.uniform(own, leaf.shape, jnp.float32, -bound, bound)
        return nn.LogicallyPartitioned(values, ("layers", "adapter", None))

    return jax.tree_util.tree_map_with_path(start, shapes)


def with_adapters(
    params: Mapping[str, Any], adapters: Mapping[str, Any], scale: float
) -> dict[str, Any]:
    """Parameters for which the modules compute the low-rank path.

    Args:
        params: the frozen parameters.
        adapters: a tree as in `initial_adapters`, unboxed.
        scale: alpha / r, which B is multiplied with.
    """
    if LORA_A in adapters:
        return {**params, LORA_A: adapters[LORA_A], LORA_B: adapters[LORA_B] * scale}
    inside = {name: with_adapters(params[name], adapters[name], scale) for name in adapters}
    return {**params, **inside}


def merged_kernel(
    kernel: Float[ArrayT, " D *F"],
    a: Float[ArrayT, "D r"],
    b: Float[ArrayT, " r *F"],
    scale: float,
) -> Float[ArrayT, " D *F"]:
    """The kernel that computes what a kernel and its adapter do: W + scale A B, in float32."""
    product = (a @ b.reshape(len(b), -1)).reshape(kernel.shape)
    return kernel.astype(np.float32) + np.float32(scale) * product


def merged(params: Any, adapters: Any, scale: float) -> Any:
    """The parameters of a model without adapters that computes what an adapted one does, float32.

    Args:
        params: the frozen parameters, stacked by layer.
        adapters: a tree as in `initial_adapters`, unboxed.
        scale: alpha / r.
    """
    if adapters is not None and LORA_A in adapters:
        merge = jax.vmap(lambda kernel, a, b: merged_kernel(kernel, a, b, scale))
        kernel = merge(params["kernel"], adapters[LORA_A], adapters[LORA_B])
        return {**jax.tree.map(_float32, params), "kernel": kernel}
    if not isinstance(params, Mapping):
        return _float32(params)
    inside = adapters or {}
    return {name: merged(params[name], inside.get(name), scale) for name in params}


def _float32(leaf: Any) -> Any:
    return leaf.astype(jnp.float32)


def fit_positions(table: ArrayT, count: int) -> ArrayT:
    """The position embeddings [P, D] of a frozen model for another number of positions.

    Those beyond `count` are left out. New ones are as the last: they are a few at the end of a
    sequence with more commands, and nothing could learn them.
    """
    return table[np.minimum(np.arange(count), len(table) - 1)]


def adapter_pairs(
    adapters: Mapping[str, Any], path: Sequence[str] = ()
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """(the keys of a linear layer, A, B) of every adapter of a tree."""
    if LORA_A in adapters:
        yield tuple(path), adapters[LORA_A], adapters[LORA_B]
        return
    for name in adapters:
        yield from adapter_pairs(adapters[name], (*path, name))
