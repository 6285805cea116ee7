"""The blocks for one new token a row, as kernels that read weights at the memory's speed.

A block is seven kernels, one after the other. Four are products, which run in tensor cores and take
as long for 16 rows as for one. All but the one before GELU leave their results as several partial
sums (split-K), which the next kernel adds up. The other three kernels work on each row by itself.
All are written in Pallas for NVIDIA GPUs and compiled by Triton.

Legend: B batch, R rows of a tensor core (16, of which the first B are used), D width, F features,
N heads, H head width, S slots of the cache, K partial sums.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from cogview_jax.models.attention import KeyValues
from cogview_jax.models.block import make_norm
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.kernels.cached_attention import CacheSpan, compiler_options, online_softmax
from cogview_jax.runtime.precision import Policy

#: The smallest number of rows that tensor cores multiply, and the largest that `token_step` takes.
ROWS = 16
#: The number of slots of the cache that each program of attention reads.
SPLIT = 256


class Tiles(NamedTuple):
    """How a product [R, D] @ [D, F] is divided among programs.

    Attributes:
        block_n: the number of columns of F that a program computes.
        split_k: the number of parts of D. Each part belongs to one program and makes one partial
            sum.
        block_k: the number of rows of D that a program reads at a time.
        num_warps: the number of warps of a program, each of which is 32 threads.
        num_stages: the number of reads that overlap.
    """

    block_n: int
    split_k: int
    block_k: int
    num_warps: int
    num_stages: int


#: The tiles of the four products of a block. They were chosen on an H200; see
#: docs/experiments/2026-11-27_decoding_4b_h200.md.
TILES = {
    "qkv": Tiles(64, 2, 64, 4, 6),
    "out": Tiles(64, 4, 128, 4, 4),
    "up": Tiles(64, 1, 64, 4, 6),
    "down": Tiles(64, 4, 128, 4, 4),
}
#: The width of a model has to be a multiple of this number for all of these tiles.
WIDTH_MULTIPLE = 512


class Numerics(NamedTuple):
    """What a kernel has to know about the arithmetic of the model.

    Attributes:
        relax: see `LayerNorm`.
        epsilon: see `LayerNorm`.
        dtype: the type of activations.
    """

    relax: str
    epsilon: float
    dtype: Any


def runs_token_step(width: int) -> bool:
    """Returns whether these kernels fit a model of that width.

    The device has to be one that runs `cached_attention`.
    """
    return width % WIDTH_MULTIPLE == 0


def token_step(
    config: TransformerConfig,
    policy: Policy,
    blocks: Sequence[Mapping[str, Any]],
    x: Float[Array, "B 1 D"],
    span: CacheSpan,
    cache: Sequence[KeyValues],
    tiles: Mapping[str, Tiles] = TILES,
) -> tuple[Float[Array, "B 1 D"], tuple[KeyValues, ...]]:
    """Applies all blocks to one token a row; the result is that of `Block`, up to rounding.

    Args:
        config: the sizes of a model with dense attention.
        policy: the types of its arithmetic.
        blocks: the parameters of `Block`, one tree a layer.
        x: the embedded tokens, one a row; B is at most `ROWS`.
        span: the slots that the tokens see. The tokens are written to slot `span.index`.
        cache: the cache, one entry a layer.
        tiles: the tiles of the four products.

    Returns:
        The main branch before the final norm, and the cache with the tokens.
    """
    norm, batch = make_norm(config, policy), len(x)
    numerics = Numerics(norm.relax, norm.epsilon, jnp.dtype(policy.compute))
    run = {"numerics": numerics, "interpret": span.interpret}
    main = jnp.pad(x[:, 0], ((0, ROWS - batch), (0, 0)))
    sums: Any = None
    bias: Any = None
    closing, written = None, []
    stops = jnp.broadcast_to(jnp.asarray(span.index, jnp.int32), batch)

    def kernel(linear: Mapping[str, Any]) -> Float[Array, "_ _"]:
        values = jnp.asarray(linear["kernel"], policy.compute)
        return values.reshape(len(values), -1)

    for layer, layer_cache in zip(blocks, cache, strict=True):
        attention, mlp = layer["attention"], layer["mlp"]
        main, h = _add_and_norm(
            main, sums, bias, closing, layer["attention_in"], batch=batch, **run
        )
        sums = _matmul(h, kernel(attention["qkv"]), tiles=tiles["qkv"], **run)
        bias = attention["qkv"]["bias"].reshape(-1)
        h, layer_cache = _attend(sums, bias, layer_cache, span.starts, stops, **run)
        sums = _matmul(h, kernel(attention["out"]), tiles=tiles["out"], **run)
        bias, closing = attention["out"]["bias"], layer.get("attention_out")
        main, h = _add_and_norm(main, sums, bias, closing, layer["mlp_in"], batch=batch, **run)
        h = _matmul(h, kernel(mlp["up"]), mlp["up"]["bias"], tiles=tiles["up"], **run)
        sums = _matmul(h, kernel(mlp["down"]), tiles=tiles["down"], **run)
        bias, closing = mlp["down"]["bias"], layer.get("mlp_out")
        written.append(layer_cache)
    last = (sums.sum(0) + bias)[:batch, None]
    if closing is not None:
        last = norm.apply({"params": closing}, last, jnp.ones((batch, 1), bool))
    return main[:batch, None] + last.astype(main.dtype), tuple(written)


@functools.partial(jax.jit, static_argnames=("numerics", "batch", "interpret"))
def _add_and_norm(
    main: Float[Array, "R D"],
    sums: Float[Array, "K R D"] | None,
    bias: Float[Array | np.ndarray, " D"] | None,
    closing: Mapping[str, Float[Array | np.ndarray, " D"]] | None,
    opening: Mapping[str, Float[Array | np.ndarray, " D"]],
    *,
    numerics: Numerics,
    batch: int,
    interpret: bool,
) -> tuple[Float[Array, "R D"], Float[Array, "R D"]]:
    """Adds the output of a branch to the main branch, and normalises the result.

    Args:
        main: the main branch.
        sums: the partial sums of the branch's last product; None if there is no branch to add.
        bias: the bias of that product.
        closing: the parameters of the LayerNorm at the end of the branch, if it has one.
        opening: the parameters of the LayerNorm at the start of the next branch.
        numerics: the arithmetic of the model.
        batch: the number of rows that are used. The rows from `batch` on are not written.
        interpret: whether the kernel is interpreted.

    Returns:
        The main branch, and the input of the next branch.
    """
    inputs = (main, sums, bias, closing, dict(opening))
    result = jax.ShapeDtypeStruct(main.shape, main.dtype)
    return pl.pallas_call(
        functools.partial(_add_and_norm_kernel, numerics=numerics),
        grid=(batch,),
        in_specs=jax.tree.map(_whole, inputs),
        out_specs=[_whole(main)] * 2,
        out_shape=[result] * 2,
        interpret=interpret,
        **compiler_options(8, 1),
    )(*inputs)


def _add_and_norm_kernel(
    main_ref: Any, sums_ref: Any, bias_ref: Any, closing: Any, opening: Any,
    new_main_ref: Any, normalised_ref: Any, *, numerics: Numerics,
) -> None:  # fmt: skip
    """Computes one row."""
    from jax.experimental.pallas import triton

    row, width = pl.program_id(0), main_ref.shape[1]
    # Kernels read vectors whose length is a power of two.
    lanes = jnp.arange(pl.next_power_of_2(width))
    inside = lanes < width

    def read(ref: Any, *before: Any) -> jax.Array:
        values = triton.load(ref.at[(*before, lanes)], mask=inside, other=0.0)
        return values.astype(jnp.float32)

    def norm(x: jax.Array, parameters: Any) -> jax.Array:
        normalised = _standardise(x, inside, width, numerics)
        return normalised * read(parameters["scale"]) + read(parameters["bias"])

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
    triton.store(normalised_ref.at[row, lanes], h.astype(numerics.dtype), mask=inside)


def _standardise(
    x: Float[Array, " lanes"], inside: Bool[Array, " lanes"], width: int, numerics: Numerics
) -> Float[Array, " lanes"]:
    """Normalises a row as `LayerNorm` does before scale and bias.

    The row is longer than the width; x is 0 where it is not `inside`. For a single token, the
    largest value of the whole tensor, which the release divides by, is that of its row.
    """
    largest = jnp.max(jnp.abs(x))
    if numerics.relax == "row":
        x = x / jnp.where(largest < jnp.finfo(jnp.float32).tiny, 1.0, largest)
    elif numerics.relax == "tensor":
        x = x / (jnp.where(largest > 0, largest, 8.0) / 8)
    centred = jnp.where(inside, x - jnp.sum(x) / width, 0.0)
    return centred * jax.lax.rsqrt(jnp.sum(centred**2) / width + numerics.epsilon)


@functools.partial(jax.jit, static_argnames=("tiles", "numerics", "interpret"))
def _matmul(
    x: Float[Array, "R D"],
    kernel: Float[Array, "D F"],
    bias: Float[Array | np.ndarray, " F"] | None = None,
    *,
    tiles: Tiles,
    numerics: Numerics,
    interpret: bool,
) -> Float[Array, "K R F"] | Float[Array, "R F"]:
    """Multiplies x with a kernel.

    Without a bias the result is float32 partial sums [K, R, F]. With a bias it is
    gelu(sum + bias), which is [R, F] and has the type of activations; then K has to be 1.
    """
    width, features = kernel.shape
    part = width // tiles.split_k
    inputs = (x, kernel) if bias is None else (x, kernel, bias)

    def program(x_ref: Any, kernel_ref: Any, *refs: Any) -> None:
        def add(i: jax.Array, sums: jax.Array) -> jax.Array:
            at = pl.ds(i * tiles.block_k, tiles.block_k)
            return sums + jnp.dot(
                x_ref[:, at], kernel_ref[at, :], preferred_element_type=jnp.float32
            )

        zeros = jnp.zeros((len(x), tiles.block_n), jnp.float32)
        sums = jax.lax.fori_loop(0, part // tiles.block_k, add, zeros)
        if bias is not None:
            sums = nn.gelu(sums + refs[0][...].astype(jnp.float32)[None], approximate=True)
        refs[-1][...] = sums.astype(refs[-1].dtype)

    specs = [
        pl.BlockSpec((len(x), part), lambda i, p: (0, p)),
        pl.BlockSpec((part, tiles.block_n), lambda i, p: (p, i)),
        pl.BlockSpec((tiles.block_n,), lambda i, p: (i,)),
    ]
    if bias is None:
        shape = jax.ShapeDtypeStruct((tiles.split_k, len(x), features), jnp.float32)
        out = pl.BlockSpec((None, len(x), tiles.block_n), lambda i, p: (p, 0, i))
    else:
        shape = jax.ShapeDtypeStruct((len(x), features), numerics.dtype)
        out = pl.BlockSpec((len(x), tiles.block_n), lambda i, p: (0, i))
    return pl.pallas_call(
        program,
        grid=(features // tiles.block_n, tiles.split_k),
        in_specs=specs[: len(inputs)],
        out_specs=out,
        out_shape=shape,
        interpret=interpret,
        **compiler_options(tiles.num_warps, tiles.num_stages),
    )(*inputs)


def _whole(x: jax.Array | np.ndarray) -> pl.BlockSpec:
    """Gives every program the whole array."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


@functools.partial(jax.jit, static_argnames=("numerics", "interpret"))
def _attend(
    sums: Float[Array, "K R three_D"],
    bias: Float[Array | np.ndarray, " three_D"],
    cache: KeyValues,
    starts: Int[Array, " B"],
    index: Int[Array, " B"],
    *,
    numerics: Numerics,
    interpret: bool,
) -> tuple[Float[Array, "R D"], KeyValues]:
    """Attends from the new tokens to the cache and to themselves, and writes them to the cache.

    Each program attends to one split of the slots (flash-decoding). The results of the splits are
    combined afterwards.

    Args:
        sums: the partial sums of the queries, keys and values, which are side by side.
        bias: the bias of queries, keys and values.
        cache: the cache of the layer.
        starts: the first slot that each row sees.
        index: the slot of the new token of each row.
        numerics: the arithmetic of the model.
        interpret: whether the kernel is interpreted.

    Returns:
        The output of attention before its projection, and the cache with the tokens.
    """
    batch, heads, slots, head_width = cache.keys.shape
    parts, rows = sums.shape[:2]
    width, splits = heads * head_width, -(-slots // SPLIT)
    cached = pl.BlockSpec((None, None, slots, head_width), lambda b, n, s: (b, n, 0, 0))
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in cache]
    of_splits = [
        jax.ShapeDtypeStruct((batch, splits, width), jnp.float32),
        jax.ShapeDtypeStruct((batch, splits, heads), jnp.float32),
        jax.ShapeDtypeStruct((batch, splits, heads), jnp.float32),
    ]
    scalar = pl.BlockSpec((None, None, None), lambda b, n, s: (b, s, n))
    totals, largest, denominators, keys, values = pl.pallas_call(
        functools.partial(_attend_kernel, scale=head_width**-0.5, dtype=numerics.dtype),
        grid=(batch, heads, splits),
        in_specs=[
            pl.BlockSpec((None,), lambda b, n, s: (b,)),
            pl.BlockSpec((1,), lambda b, n, s: (b,)),
            pl.BlockSpec((parts, None, 3, head_width), lambda b, n, s: (0, b, 0, n)),
            pl.BlockSpec((3, head_width), lambda b, n, s: (0, n)),
            cached,
            cached,
        ],
        out_specs=[
            pl.BlockSpec((None, None, head_width), lambda b, n, s: (b, s, n)),
            scalar, scalar, cached, cached,
        ],
        out_shape=[*of_splits, *like],
        input_output_aliases={4: 3, 5: 4},
        interpret=interpret,
        **compiler_options(4, 1),
    )(
        starts.astype(jnp.int32), index,
        sums.reshape(parts, rows, 3, width), bias.reshape(3, width), *cache,
    )  # fmt: skip
    factors = jnp.exp(largest - largest.max(axis=1, keepdims=True))
    totals = totals.reshape(batch, splits, heads, head_width)
    y = (totals * factors[..., None]).sum(1) / (denominators * factors).sum(1)[..., None]
    y = y.reshape(batch, width).astype(numerics.dtype)
    return jnp.pad(y, ((0, rows - batch), (0, 0))), KeyValues(keys, values)


def _attend_kernel(
    start_ref: Any, index_ref: Any, sums_ref: Any, bias_ref: Any, keys_ref: Any, values_ref: Any,
    total_ref: Any, largest_ref: Any, denominator_ref: Any, new_keys_ref: Any, new_values_ref: Any,
    *, scale: float, dtype: Any,
) -> None:  # fmt: skip
    """Attends to one split of the slots, for one head of one row.

    The first split also attends to the token itself, whose key and value it computes from the
    partial sums.
    """

    def projected(i: int) -> jax.Array:
        sums = sum(sums_ref[part, i, :] for part in range(sums_ref.shape[0]))
        return (sums + bias_ref[i, :].astype(jnp.float32)).astype(dtype)

    split, index = pl.program_id(2), index_ref[0]
    key, value = projected(1), projected(2)
    query = projected(0).astype(jnp.float32) * scale
    start = jnp.maximum(start_ref[...], split * SPLIT)
    stop = jnp.minimum(index, (split + 1) * SPLIT)
    total, largest, denominator = online_softmax(query, keys_ref, values_ref, start, stop)

    @pl.when(split == 0)
    def _() -> None:
        new_keys_ref[index, :] = key
        new_values_ref[index, :] = value

    key, value = key.astype(jnp.float32), value.astype(jnp.float32)
    score = jnp.where(split == 0, jnp.sum(query * key), jnp.finfo(jnp.float32).min)
    new_largest = jnp.maximum(largest, score)
    correction = jnp.exp(largest - new_largest)
    weight = jnp.where(split == 0, jnp.exp(score - new_largest), 0.0)
    total_ref[...] = total * correction + weight * value
    largest_ref[...] = new_largest
    denominator_ref[...] = denominator * correction + weight
