"""The blocks for one new token a row, as kernels that read weights at the memory's speed.

A block is seven kernels in a row: what lies between two products is one, for each row by itself,
and reads the sums that the product before it left in parts. Products run in tensor cores, for up to
16 rows in the time of one. Written in Pallas for NVIDIA GPUs, through Triton.

Legend: B batch, R rows of a tensor core (16, of which B count), D width, F features, N heads,
H head width, S slots of the cache, P parts of a sum.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from cogview_jax.models.attention import KeyValues
from cogview_jax.models.block import make_norm
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.kernels.cached_attention import CacheSpan, compiler, online_softmax
from cogview_jax.runtime.precision import Policy

#: The fewest rows that tensor cores multiply, and the most that `token_step` takes.
ROWS = 16
#: Slots of the cache for each program of attention.
SHARE = 256


class Tiles(NamedTuple):
    """How a product [R, D] @ [D, F] is cut.

    columns: of F, for each program. parts: of D; each is a program's and makes one of the sums.
    depth: how much of D is read at a time. warps: threads of a program, in 32s. stages: reads that
    are under way at a time.
    """

    columns: int
    parts: int
    depth: int
    warps: int
    stages: int


#: Of a block's four products; chosen on an H200: docs/experiments/2026-11-27_decoding_4b_h200.md.
TILES = {
    "qkv": Tiles(64, 2, 64, 4, 6),
    "out": Tiles(64, 4, 128, 4, 4),
    "up": Tiles(64, 1, 64, 4, 6),
    "down": Tiles(64, 4, 128, 4, 4),
}
#: What a width must be a multiple of for all of these.
MULTIPLE = 512


class Numerics(NamedTuple):
    """What a kernel must know of the model: LayerNorm's relaxation and epsilon, the type."""

    relax: str
    epsilon: float
    dtype: Any


def runs_token_step(width: int) -> bool:
    """Whether a device that runs the cache's kernel can run these, for a model of that width."""
    return width % MULTIPLE == 0


def token_step(
    config: TransformerConfig,
    policy: Policy,
    blocks: Sequence[Mapping[str, Any]],
    x: jax.Array,
    span: CacheSpan,
    cache: Sequence[KeyValues],
    tiles: Mapping[str, Tiles] = TILES,
) -> tuple[jax.Array, tuple[KeyValues, ...]]:
    """x [B, 1, D] through all blocks: what `Block` computes one after the other, up to rounding.

    Args:
        config, policy: of a model with dense attention.
        blocks: the parameters of `Block`, one tree a layer.
        x: the embedded tokens, one a row.
        span: which slots the tokens see; they are written at `span.index`.
        cache: one entry a layer.
        tiles: of the four products.

    Returns:
        The main branch [B, 1, D] before the final norm, and the cache with the tokens.
    """
    norm, batch = make_norm(config, policy), len(x)
    numerics = Numerics(norm.relax, norm.epsilon, jnp.dtype(policy.compute))
    run = {"numerics": numerics, "interpret": span.interpret}
    main = jnp.pad(x[:, 0], ((0, ROWS - batch), (0, 0)))
    sums: Any = None
    bias: Any = None
    closing = None
    written = []

    def kernel(linear: Mapping[str, Any]) -> jax.Array:
        values = linear["kernel"].astype(policy.compute)
        return values.reshape(len(values), -1)

    for layer, layer_cache in zip(blocks, cache, strict=True):
        attention, mlp = layer["attention"], layer["mlp"]
        main, h = _joined(main, sums, bias, closing, layer["attention_in"], batch=batch, **run)
        sums = _product(h, kernel(attention["qkv"]), tiles=tiles["qkv"], **run)
        bias = attention["qkv"]["bias"].reshape(-1)
        h, layer_cache = _attended(
            sums, bias, layer_cache, span.starts, jnp.int32(span.index), **run
        )
        sums = _product(h, kernel(attention["out"]), tiles=tiles["out"], **run)
        bias, closing = attention["out"]["bias"], layer.get("attention_out")
        main, h = _joined(main, sums, bias, closing, layer["mlp_in"], batch=batch, **run)
        h = _product(h, kernel(mlp["up"]), mlp["up"]["bias"], tiles=tiles["up"], **run)
        sums = _product(h, kernel(mlp["down"]), tiles=tiles["down"], **run)
        bias, closing = mlp["down"]["bias"], layer.get("mlp_out")
        written.append(layer_cache)
    last = (sums.sum(0) + bias)[:batch, None]
    if closing is not None:
        last = norm.apply({"params": closing}, last, jnp.ones((batch, 1), bool))
    return main[:batch, None] + last.astype(main.dtype), tuple(written)


@functools.partial(jax.jit, static_argnames=("numerics", "batch", "interpret"))
def _joined(
    main: jax.Array,
    sums: jax.Array | None,
    bias: jax.Array | None,
    closing: Mapping[str, jax.Array] | None,
    opening: Mapping[str, jax.Array],
    *,
    numerics: Numerics,
    batch: int,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """The end of one branch and the start of the next: main with the branch, and its norm.

    main: [R, D]. sums, bias: of the branch [P, R, D] and [D], added through the norm `closing`
    where there is one. opening: the norm of the next branch. Of the results [R, D] the rows from
    `batch` on are not written.
    """
    inputs = (main, sums, bias, closing, dict(opening))
    result = jax.ShapeDtypeStruct(main.shape, main.dtype)
    return pl.pallas_call(
        functools.partial(_joined_kernel, numerics=numerics),
        grid=(batch,),
        in_specs=jax.tree.map(_whole, inputs),
        out_specs=[_whole(main)] * 2,
        out_shape=[result] * 2,
        interpret=interpret,
        **compiler(8, 1),
    )(*inputs)


def _joined_kernel(
    main_ref: Any, sums_ref: Any, bias_ref: Any, closing: Any, opening: Any,
    new_main_ref: Any, normal_ref: Any, *, numerics: Numerics,
) -> None:  # fmt: skip
    """One row."""
    from jax.experimental.pallas import triton

    row, width = pl.program_id(0), main_ref.shape[1]
    lanes = jnp.arange(pl.next_power_of_2(width))
    inside = lanes < width

    def read(ref: Any, *before: Any) -> jax.Array:
        values = triton.load(ref.at[(*before, lanes)], mask=inside, other=0.0)
        return values.astype(jnp.float32)

    def norm(x: jax.Array, parameters: Any) -> jax.Array:
        normal = _standardised(x, inside, width, numerics)
        return normal * read(parameters["scale"]) + read(parameters["bias"])

    x = read(main_ref, row)
    if sums_ref is not None:
        y = sum(read(sums_ref, np.int32(part), row) for part in range(sums_ref.shape[0]))
        y += read(bias_ref)
        if closing is not None:
            y = norm(y, closing)
        x = (
            (x + y.astype(numerics.dtype).astype(jnp.float32))
            .astype(numerics.dtype)
            .astype(jnp.float32)
        )
    h = norm(jnp.where(inside, x, 0), opening)
    triton.store(new_main_ref.at[row, lanes], x.astype(numerics.dtype), mask=inside)
    triton.store(normal_ref.at[row, lanes], h.astype(numerics.dtype), mask=inside)


def _standardised(x: jax.Array, inside: jax.Array, width: int, numerics: Numerics) -> jax.Array:
    """A row [L] as `LayerNorm` has it before scale and bias.

    Kernels read powers of two: beyond the width, where it is not `inside`, x is 0. Of one token
    the release's largest value of the whole tensor is the row's own.
    """
    largest = jnp.max(jnp.abs(x))
    if numerics.relax == "row":
        x = x / jnp.where(largest < jnp.finfo(jnp.float32).tiny, 1.0, largest)
    elif numerics.relax == "tensor":
        x = x / (jnp.where(largest > 0, largest, 8.0) / 8)
    centred = jnp.where(inside, x - jnp.sum(x) / width, 0.0)
    return centred * jax.lax.rsqrt(jnp.sum(centred**2) / width + numerics.epsilon)


@functools.partial(jax.jit, static_argnames=("tiles", "numerics", "interpret"))
def _product(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    tiles: Tiles,
    numerics: Numerics,
    interpret: bool,
) -> jax.Array:
    """x [R, D] @ kernel [D, F] as float32 sums [P, R, F]; with a bias gelu(sum + bias) [R, F]."""
    width, features = kernel.shape
    part = width // tiles.parts
    given = (x, kernel) if bias is None else (x, kernel, bias)

    def program(x_ref: Any, kernel_ref: Any, *refs: Any) -> None:
        def add(i: jax.Array, sums: jax.Array) -> jax.Array:
            at = pl.ds(i * tiles.depth, tiles.depth)
            return sums + jnp.dot(
                x_ref[:, at], kernel_ref[at, :], preferred_element_type=jnp.float32
            )

        nothing = jnp.zeros((len(x), tiles.columns), jnp.float32)
        sums = jax.lax.fori_loop(0, part // tiles.depth, add, nothing)
        if bias is not None:
            sums = nn.gelu(sums + refs[0][...].astype(jnp.float32)[None], approximate=True)
        refs[-1][...] = sums.astype(refs[-1].dtype)

    specs = [
        pl.BlockSpec((len(x), part), lambda i, p: (0, p)),
        pl.BlockSpec((part, tiles.columns), lambda i, p: (p, i)),
        pl.BlockSpec((tiles.columns,), lambda i, p: (i,)),
    ]
    if bias is None:
        shape = jax.ShapeDtypeStruct((tiles.parts, len(x), features), jnp.float32)
        out = pl.BlockSpec((None, len(x), tiles.columns), lambda i, p: (p, 0, i))
    else:
        shape = jax.ShapeDtypeStruct((len(x), features), numerics.dtype)
        out = pl.BlockSpec((len(x), tiles.columns), lambda i, p: (0, i))
    return pl.pallas_call(
        program,
        grid=(features // tiles.columns, tiles.parts),
        in_specs=specs[: len(given)],
        out_specs=out,
        out_shape=shape,
        interpret=interpret,
        **compiler(tiles.warps, tiles.stages),
    )(*given)


def _whole(x: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


@functools.partial(jax.jit, static_argnames=("numerics", "interpret"))
def _attended(
    sums: jax.Array,
    bias: jax.Array,
    cache: KeyValues,
    starts: jax.Array,
    index: jax.Array,
    *,
    numerics: Numerics,
    interpret: bool,
) -> tuple[jax.Array, KeyValues]:
    """Attention of the new tokens to the cache and to themselves [R, D], and the cache with them.

    sums, bias: of queries, keys and values [P, R, 3D] and [3D]. Programs take a share of the slots
    each; what they find is put together afterwards.
    """
    batch, heads, slots, head_width = cache.keys.shape
    parts, rows = sums.shape[:2]
    width, shares = heads * head_width, -(-slots // SHARE)
    cached = pl.BlockSpec((None, None, slots, head_width), lambda b, n, s: (b, n, 0, 0))
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in cache]
    found = [
        jax.ShapeDtypeStruct((batch, shares, width), jnp.float32),
        jax.ShapeDtypeStruct((batch, shares, heads), jnp.float32),
        jax.ShapeDtypeStruct((batch, shares, heads), jnp.float32),
    ]
    number = pl.BlockSpec((None, None, None), lambda b, n, s: (b, s, n))
    totals, largest, weights, keys, values = pl.pallas_call(
        functools.partial(_attended_kernel, scale=head_width**-0.5, dtype=numerics.dtype),
        grid=(batch, heads, shares),
        in_specs=[
            pl.BlockSpec((None,), lambda b, n, s: (b,)),
            pl.BlockSpec((1,), lambda b, n, s: (0,)),
            pl.BlockSpec((parts, None, 3, head_width), lambda b, n, s: (0, b, 0, n)),
            pl.BlockSpec((3, head_width), lambda b, n, s: (0, n)),
            cached,
            cached,
        ],
        out_specs=[
            pl.BlockSpec((None, None, head_width), lambda b, n, s: (b, s, n)),
            number, number, cached, cached,
        ],
        out_shape=[*found, *like],
        input_output_aliases={4: 3, 5: 4},
        interpret=interpret,
        **compiler(4, 1),
    )(
        starts.astype(jnp.int32), index[None],
        sums.reshape(parts, rows, 3, width), bias.reshape(3, width), *cache,
    )  # fmt: skip
    factors = jnp.exp(largest - largest.max(axis=1, keepdims=True))
    totals = totals.reshape(batch, shares, heads, head_width)
    y = (totals * factors[..., None]).sum(1) / (weights * factors).sum(1)[..., None]
    y = y.reshape(batch, width).astype(numerics.dtype)
    return jnp.pad(y, ((0, rows - batch), (0, 0))), KeyValues(keys, values)


def _attended_kernel(
    start_ref: Any, index_ref: Any, sums_ref: Any, bias_ref: Any, keys_ref: Any, values_ref: Any,
    total_ref: Any, largest_ref: Any, weights_ref: Any, new_keys_ref: Any, new_values_ref: Any,
    *, scale: float, dtype: Any,
) -> None:  # fmt: skip
    """A share of the slots of one head of one row.

    The first share has the token itself, too, whose key and value it takes from where they were
    computed.
    """

    def projected(i: int) -> jax.Array:
        sums = sum(sums_ref[part, i, :] for part in range(sums_ref.shape[0]))
        return (sums + bias_ref[i, :].astype(jnp.float32)).astype(dtype)

    share, index = pl.program_id(2), index_ref[0]
    key, value = projected(1), projected(2)
    query = projected(0).astype(jnp.float32) * scale
    start = jnp.maximum(start_ref[...], share * SHARE)
    stop = jnp.minimum(index, (share + 1) * SHARE)
    total, largest, weights = online_softmax(query, keys_ref, values_ref, start, stop)

    @pl.when(share == 0)
    def _() -> None:
        new_keys_ref[index, :] = key
        new_values_ref[index, :] = value

    key, value = key.astype(jnp.float32), value.astype(jnp.float32)
    score = jnp.where(share == 0, jnp.sum(query * key), jnp.finfo(jnp.float32).min)
    now = jnp.maximum(largest, score)
    faded = jnp.exp(largest - now)
    own = jnp.where(share == 0, jnp.exp(score - now), 0.0)
    total_ref[...] = total * faded + own * value
    largest_ref[...] = now
    weights_ref[...] = weights * faded + own
