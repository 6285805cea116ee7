"""The kernels for one new token a row equal the blocks; they are interpreted without a GPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpu_lowering
import reference
import tiny
from cogview_jax.models.attention import KeyValues
from cogview_jax.models.block import Block
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.implementation import Implementation
from cogview_jax.models.kernels import token_step as kernels
from cogview_jax.models.kernels.cached_attention import CacheSpan
from cogview_jax.models.kernels.token_step import ROWS, Tiles, token_step
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.sharding import unbox

INTERPRETED = jax.default_backend() != "gpu"
WIDTH, HEADS, SLOTS = 96, 6, 300
TILES = {
    "qkv": Tiles(32, 2, 16, 4, 2),
    "out": Tiles(16, 2, 16, 4, 2),
    "up": Tiles(64, 1, 32, 4, 2),
    "down": Tiles(32, 4, 32, 4, 2),
}


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"compat": "official", "pb_relax_attention": False, "embedding_gradient": 1.0},
        {"sandwich_ln": False, "pb_relax_norm": False},
    ],
    ids=["paper", "official", "pre-LN"],
)
@pytest.mark.parametrize(("precision", "error"), [("float32", 1e-6), ("bfloat16", 1.5e-2)])
@pytest.mark.parametrize("index", [270, (270, 299, 280)], ids=["together", "apart"])
def test_it_is_the_blocks(precision, error, switches, index):
    """The rows begin at the first slot, at slot 269, and at slot 270.

    `error` is relative to the largest value of what is compared, the output and each cache.
    """
    config = TransformerConfig(layers=2, width=WIDTH, heads=HEADS, dropout=0.0, **switches)
    types = policy(precision)
    block = Block(config, types)
    generator = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(generator.standard_normal(shape), types.compute)

    x, index, starts = normal(3, 1, WIDTH), jnp.int32(index), jnp.array([0, 269, 270])
    filled = (3, HEADS, SLOTS, WIDTH // HEADS)
    cache = [KeyValues(normal(*filled), normal(*filled)) for _ in range(2)]
    slots = jnp.arange(SLOTS)
    mask = (slots <= index[..., None]) & (slots >= starts[:, None])
    mask, valid = mask[:, None, None, :], jnp.ones((3, 1), bool)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, mask[..., :1])["params"]
    blocks = [reference.random_like(unbox(shapes), i) for i in range(2)]
    expected, expected_cache, span = x, [], CacheSpan(starts, index, INTERPRETED)
    # By default a GPU multiplies float32 in fewer bits.
    with jax.default_matmul_precision("highest" if precision == "float32" else None):
        for layer, layer_cache in zip(blocks, cache, strict=True):
            expected, layer_cache = jax.jit(block.apply)(
                {"params": layer}, expected, mask, layer_cache, index, valid
            )
            expected_cache.append(layer_cache)
        y, written = token_step(config, types, blocks, x, span, cache, TILES)
    pairs = zip(
        *map(jax.tree.leaves, ((y, written), (expected, tuple(expected_cache)))), strict=True
    )
    for value, true in pairs:
        value, true = reference.float64(value), reference.float64(true)
        np.testing.assert_allclose(value, true, atol=error * np.abs(true).max(), rtol=0)


@pytest.mark.parametrize("rows", [3, ROWS + 1])
def test_decoding_with_it_draws_the_same(rows):
    """For more rows than it takes, `cached_attention` runs in every layer."""
    kernel = Implementation("xla", "token_step", jax.default_backend(), INTERPRETED)
    sizes = {"rows": rows, "width": kernels.WIDTH_MULTIPLE}
    np.testing.assert_array_equal(tiny.draw(4, kernel, **sizes), tiny.draw(4, **sizes))
    # Each layer has seven kernels.
    assert tiny.kernel_calls(kernel, **sizes) == (14 if rows <= ROWS else 2)


def test_a_gpu_is_given_it_at_the_papers_size():
    """The width is no power of two, and kernels read vectors whose length is one."""
    config, types = TransformerConfig(layers=2, width=2560, heads=40), policy("bfloat16")
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=types.compute)
    x, mask = shape((3, 1, config.width)), jax.ShapeDtypeStruct((3, 1, 1, 1), bool)
    block = unbox(jax.eval_shape(Block(config, types).init, jax.random.key(0), x, mask)["params"])
    cache = [KeyValues(*[shape((3, config.heads, 1088, config.head_width))] * 2)] * 2
    span = CacheSpan(jnp.zeros(3, jnp.int32), jnp.int32(0))
    step = functools.partial(token_step, config, types)
    # Four products, attention, and the addition of a branch, in two forms: without and with one.
    assert gpu_lowering.kernels(step, [block] * 2, x, span, cache) == 7


@pytest.mark.parametrize("mlp_ratio", [1, 3, 4])
@pytest.mark.parametrize("multiple", [1, 2, 3, 5])
def test_the_products_of_every_width_they_are_used_for_are_cut_without_rest(multiple, mlp_ratio):
    width = multiple * kernels.WIDTH_MULTIPLE
    hidden = mlp_ratio * width
    shapes = {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    assert shapes.keys() == kernels.TILES.keys()
    for name, (given, features) in shapes.items():
        tiles = kernels.TILES[name]
        assert given % (tiles.split_k * tiles.block_k) == 0, name
        assert features % tiles.block_n == 0, name
    # The input of GELU has to be a whole sum.
    assert kernels.TILES["up"].split_k == 1
