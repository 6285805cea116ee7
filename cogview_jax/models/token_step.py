"""The blocks for one new token a row, as kernels that read weights at the memory's speed.

Of so few numbers norms, biases and residuals take less time than it takes to start a kernel. They
are computed by the products that read them, each program for itself, while its weights are on their
way; products leave sums over parts of their input, which their readers add. A block is so five
kernels in a row. Written in Pallas for NVIDIA GPUs, through Triton.

Legend: B batch, D width, F features, N heads, H head width, S slots of the cache, P parts of a sum.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from cogview_jax.models.attention import KeyValues
from cogview_jax.models.block import make_norm
from cogview_jax.models.cached_attention import WARPS, Filled, attend, compiler, has_cache_kernel
from cogview_jax.models.config import TransformerConfig
from cogview_jax.runtime.precision import Policy

#: With more rows XLA's own products, in tensor cores, are as fast.
MOST_ROWS = 4


class Tiles(NamedTuple):
    """How a product [B, D] @ [D, F] is cut.

    columns: of F, for each program. parts: of D; each is a program's and makes one of the sums.
    depth: how much of D is read at a time. warps: threads of a program, in 32s.
    """

    columns: int
    parts: int
    depth: int
    warps: int


#: Of a block's four products; chosen on an H100 (bench/RESULTS.md).
TILES = {
    "qkv": Tiles(64, 1, 128, 8),
    "out": Tiles(32, 2, 128, 4),
    "up": Tiles(64, 1, 128, 8),
    "down": Tiles(32, 4, 128, 4),
}
#: What all of these divide, in widths.
MULTIPLE = 512


class Sums(NamedTuple):
    """The output of an affine map whose sums are still in parts: float32 [P, B, F]; bias [F]."""

    sums: jax.Array
    bias: jax.Array


class Form(NamedTuple):
    """What a kernel must know of the model: LayerNorm's relaxation and epsilon, the type."""

    relax: str
    epsilon: float
    dtype: Any


def has_token_step(config: TransformerConfig, policy: Policy, rows: int) -> bool:
    """Whether programs made now can use the kernels, for so many rows."""
    return (
        rows <= MOST_ROWS
        and not config.sparse
        and config.width % MULTIPLE == 0
        and policy.reductions == jnp.float32
        and has_cache_kernel(policy.compute, config.head_width)
    )


def token_step(
    config: TransformerConfig,
    policy: Policy,
    blocks: Sequence[Mapping[str, Any]],
    x: jax.Array,
    seen: Filled,
    cache: Sequence[KeyValues],
    tiles: Mapping[str, Tiles] = TILES,
    interpret: bool = False,
) -> tuple[jax.Array, tuple[KeyValues, ...]]:
    """x [B, 1, D] through all blocks: what `Block` computes one after the other, up to rounding.

    Args:
        config, policy: of a model with dense attention.
        blocks: the parameters of `Block`, one tree a layer.
        x: the embedded tokens, one a row.
        seen: which slots the tokens see; they are written at `seen.index`.
        cache: one entry a layer.
        tiles: of the four products.
        interpret: runs it without a GPU, slowly.

    Returns:
        The main branch [B, 1, D] before the final norm, and the cache with the tokens.
    """
    norm = make_norm(config, policy)
    form = Form(norm.relax, norm.epsilon, jnp.dtype(policy.compute))
    run = {"form": form, "interpret": interpret}
    main, branch, closing, written = x[:, 0], None, None, []

    def kernel(layer: Mapping[str, Any], *path: str) -> jax.Array:
        values = layer[path[0]][path[1]]["kernel"].astype(policy.compute)
        return values.reshape(len(values), -1)

    def sums(values: jax.Array, layer: Mapping[str, Any], *path: str) -> Sums:
        return Sums(values, layer[path[0]][path[1]]["bias"].reshape(-1))

    for layer, kept in zip(blocks, cache, strict=True):
        main, projected = _entered(
            main, branch, closing, layer["attention_in"], kernel(layer, "attention", "qkv"),
            tiles=tiles["qkv"], **run,
        )  # fmt: skip
        read = sums(projected, layer, "attention", "qkv")
        attended, kept = _attended(read, kept, seen.starts, jnp.int32(seen.index), **run)
        branch = sums(
            _mapped(attended, kernel(layer, "attention", "out"), tiles=tiles["out"], **run),
            layer, "attention", "out",
        )  # fmt: skip
        main, hidden = _entered(
            main, branch, layer.get("attention_out"), layer["mlp_in"], kernel(layer, "mlp", "up"),
            tiles=tiles["up"], **run,
        )  # fmt: skip
        hidden = sums(hidden, layer, "mlp", "up")
        branch = sums(
            _mapped(hidden, kernel(layer, "mlp", "down"), tiles=tiles["down"], **run),
            layer, "mlp", "down",
        )  # fmt: skip
        closing = layer.get("mlp_out")
        written.append(kept)
    last = branch.sums.sum(0) + branch.bias
    if closing is not None:
        last = norm.apply({"params": closing}, last)
    return (main + last.astype(main.dtype))[:, None], tuple(written)


@functools.partial(jax.jit, static_argnames=("tiles", "form", "interpret"))
def _entered(
    main: jax.Array,
    branch: Sums | None,
    closing: Mapping[str, jax.Array] | None,
    opening: Mapping[str, jax.Array],
    kernel: jax.Array,
    *,
    tiles: Tiles,
    form: Form,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """The end of one branch and the start of the next.

    main: [B, D]. branch: what is added to it, through the norm `closing` where there is one.
    opening: the norm before `kernel` [D, F]. Returns main with the branch [B, D], and the sums of
    the product [P, B, F].
    """
    inputs = (main, branch, closing, dict(opening))
    return _product(
        functools.partial(_entered_kernel, form=form),
        inputs, kernel, tiles, interpret, main,
    )  # fmt: skip


def _entered_kernel(
    main_ref: Any, branch: Any, closing: Any, opening: Any, new_main_ref: Any, *, form: Form
) -> Callable[[int, Any], jax.Array]:
    """What `_product` multiplies: normalised rows of the main branch."""
    batch, width = main_ref.shape
    lanes = jnp.arange(pl.next_power_of_2(width))
    everywhere = (pl.ds(0, len(lanes)), lanes < width)
    added, scaled = [], []

    def plus_branch(row: int, at: tuple, statistics: tuple | None) -> jax.Array:
        x = _read(main_ref, row, *at)
        if branch is None:
            return x
        y = _total(branch, row, *at)
        if closing is not None:
            y = _normal(y, statistics, closing, *at)
        y = y.astype(form.dtype).astype(jnp.float32)
        return (x + y).astype(form.dtype).astype(jnp.float32)

    for row in range(batch):
        added.append(None)
        if branch is not None and closing is not None:
            y = _total(branch, row, *everywhere)
            added[row] = _statistics(y, everywhere[1], width, form)
        x = plus_branch(row, everywhere, added[row])
        scaled.append(_statistics(x, everywhere[1], width, form))

        @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
        def _(row: int = row, x: jax.Array = x) -> None:
            _write(new_main_ref, row, *everywhere, x)

    def normalised(row: int, at: Any) -> jax.Array:
        x = plus_branch(row, (at, None), added[row])
        return _normal(x, scaled[row], opening, at, None)

    return normalised


@functools.partial(jax.jit, static_argnames=("tiles", "form", "interpret"))
def _mapped(
    x: jax.Array | Sums, kernel: jax.Array, *, tiles: Tiles, form: Form, interpret: bool
) -> jax.Array:
    """x @ kernel as sums [P, B, F]; x is [B, D] as it is, or sums that go through GELU."""

    def rows(ref: Any) -> Callable[[int, Any], jax.Array]:
        if isinstance(ref, Sums):
            return lambda row, at: nn.gelu(_total(ref, row, at, None), approximate=True)
        return lambda row, at: _read(ref, row, at, None)

    (sums,) = _product(rows, (x,), kernel, tiles, interpret)
    return sums


def _product(
    prepare: Callable,
    inputs: tuple,
    kernel: jax.Array,
    tiles: Tiles,
    interpret: bool,
    *results: jax.Array,
) -> list[jax.Array]:
    """rows @ kernel [D, F] as sums [P, B, F], after `results`, whose form others have.

    prepare: (refs of inputs, refs of results) -> (row, positions) -> float32 values of that row.
    """
    batch = jax.tree.leaves(inputs)[0].shape[-2]
    width, features = kernel.shape
    part = width // tiles.parts

    def whole(x: jax.Array) -> pl.BlockSpec:
        return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)

    def program(*refs: Any) -> None:
        *given, kernel_ref = refs[: len(inputs) + 1]
        *made, sums_ref = refs[len(inputs) + 1 :]

        def weights(i: int) -> jax.Array:
            return kernel_ref[pl.ds(i * tiles.depth, tiles.depth), :]

        begin = pl.program_id(1) * part
        ahead = weights(0)  # on its way while the rows are prepared
        rows = prepare(*given, *made)
        sums = [jnp.zeros((tiles.depth, tiles.columns), jnp.float32)] * batch
        for i in range(part // tiles.depth):
            now = ahead.astype(jnp.float32)
            if (i + 1) * tiles.depth < part:
                ahead = weights(i + 1)
            at = pl.ds(begin + i * tiles.depth, tiles.depth)
            for b in range(batch):
                values = rows(b, at).astype(kernel.dtype).astype(jnp.float32)
                sums[b] += values[:, None] * now
        for b in range(batch):
            sums_ref[b, :] = jnp.sum(sums[b], axis=0)

    shape = jax.ShapeDtypeStruct((tiles.parts, batch, features), jnp.float32)
    tile = pl.BlockSpec((part, tiles.columns), lambda i, p: (p, i))
    return pl.pallas_call(
        program,
        grid=(features // tiles.columns, tiles.parts),
        in_specs=[*jax.tree.map(whole, inputs), tile],
        out_specs=[
            *map(whole, results),
            pl.BlockSpec((None, batch, tiles.columns), lambda i, p: (p, 0, i)),
        ],
        out_shape=[*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results), shape],
        interpret=interpret,
        **compiler(tiles.warps),
    )(*inputs, kernel)


@functools.partial(jax.jit, static_argnames=("form", "interpret"))
def _attended(
    read: Sums,
    cache: KeyValues,
    starts: jax.Array,
    index: jax.Array,
    *,
    form: Form,
    interpret: bool,
) -> tuple[jax.Array, KeyValues]:
    """Attention of the new tokens to the cache and to themselves [B, D], and the cache with them.

    read: queries, keys and values of the tokens, in this order along F = 3D.
    """
    batch, heads, slots, head_width = cache.keys.shape
    parts = len(read.sums)
    sums = read.sums.reshape(parts, batch, 3, heads * head_width)
    bias = read.bias.reshape(3, heads * head_width)
    cached = pl.BlockSpec((None, None, slots, head_width), lambda b, n: (b, n, 0, 0))
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in cache]
    y, keys, values = pl.pallas_call(
        functools.partial(_attended_kernel, scale=head_width**-0.5),
        grid=(batch, heads),
        in_specs=[
            pl.BlockSpec((None,), lambda b, n: (b,)),
            pl.BlockSpec((1,), lambda b, n: (0,)),
            pl.BlockSpec((parts, None, 3, head_width), lambda b, n: (0, b, 0, n)),
            pl.BlockSpec((3, head_width), lambda b, n: (0, n)),
            cached,
            cached,
        ],
        out_specs=[pl.BlockSpec((None, head_width), lambda b, n: (b, n)), cached, cached],
        out_shape=[jax.ShapeDtypeStruct((batch, heads * head_width), form.dtype), *like],
        input_output_aliases={4: 1, 5: 2},
        interpret=interpret,
        **compiler(WARPS),
    )(starts.astype(jnp.int32), index[None], sums, bias, *cache)
    return y, KeyValues(keys, values)


def _attended_kernel(
    start_ref: Any, index_ref: Any, sums_ref: Any, bias_ref: Any, keys_ref: Any, values_ref: Any,
    out_ref: Any, new_keys_ref: Any, new_values_ref: Any, *, scale: float
) -> None:  # fmt: skip
    """One head of one row. Its own key and value it takes from where they were computed."""

    def projected(i: int) -> jax.Array:
        sums = sum(sums_ref[part, i, :] for part in range(sums_ref.shape[0]))
        return (sums + bias_ref[i, :].astype(jnp.float32)).astype(out_ref.dtype)

    query, key, value = (projected(i) for i in range(3))
    index = index_ref[0]
    new_keys_ref[index, :] = key
    new_values_ref[index, :] = value
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    query = query * scale
    total, largest, shares = attend(query, keys_ref, values_ref, start_ref[...], index)
    score = jnp.sum(query * key)
    now = jnp.maximum(largest, score)
    faded, own = jnp.exp(largest - now), jnp.exp(score - now)
    out_ref[...] = ((total * faded + own * value) / (shares * faded + own)).astype(out_ref.dtype)


def _read(ref: Any, row: int | tuple | None, at: Any, inside: jax.Array | None) -> jax.Array:
    """float32 values of a row of `ref` at some positions; zeros where not `inside`."""
    from jax.experimental.pallas import triton

    before = () if row is None else row if isinstance(row, tuple) else (row,)
    if inside is None:
        return ref[(*before, at)].astype(jnp.float32)
    view = ref.at[(*map(np.int32, before), at)]
    return triton.load(view, mask=inside, other=0.0).astype(jnp.float32)


def _write(ref: Any, row: int, at: Any, inside: jax.Array, x: jax.Array) -> None:
    from jax.experimental.pallas import triton

    triton.store(ref.at[np.int32(row), at], x.astype(ref.dtype), mask=inside)


def _total(map_ref: Sums, row: int, at: Any, inside: jax.Array | None) -> jax.Array:
    """A row of an affine map's output: the sum of its parts, and the bias."""
    parts = range(map_ref.sums.shape[0])
    sums = sum(_read(map_ref.sums, (part, row), at, inside) for part in parts)
    return sums + _read(map_ref.bias, None, at, inside)


def _statistics(x: jax.Array, inside: jax.Array, width: int, form: Form) -> tuple:
    """What LayerNorm must know of a whole row: divisor, mean, and factor; x is 0 outside."""
    largest = jnp.max(jnp.abs(x))
    if form.relax == "row":
        divisor = jnp.where(largest < jnp.finfo(jnp.float32).tiny, 1.0, largest)
    elif form.relax == "tensor":
        divisor = jnp.where(largest > 0, largest, 8.0) / 8
    else:
        divisor = jnp.float32(1)
    x = x / divisor
    mean = jnp.sum(x) / width
    centred = jnp.where(inside, x - mean, 0.0)
    return divisor, mean, jax.lax.rsqrt(jnp.sum(centred**2) / width + form.epsilon)


def _normal(
    x: jax.Array, statistics: tuple, norm: Mapping[str, Any], at: Any, inside: jax.Array | None
) -> jax.Array:
    """LayerNorm of some positions of a row whose statistics are known."""
    divisor, mean, factor = statistics
    normal = (x / divisor - mean) * factor
    return normal * _read(norm["scale"], None, at, inside) + _read(norm["bias"], None, at, inside)
