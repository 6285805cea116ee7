"""Where every array of a state lies, up to the 4-billion-parameter model, and what is in it."""

import math

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import tiny
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.tokenizers.codecs.vqvae import VQVAE, VQVAEConfig
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.codec_objective import CodecObjective
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import make_state, state_shapes

# The first dimension of what lies in blocks is the layer.
SPLIT = {
    "word_embedding": P("tensor", "fsdp"),
    "position_embedding": P(None, "fsdp"),
    "blocks.block.attention.qkv.kernel": P(None, "fsdp", None, "tensor"),
    "blocks.block.attention.qkv.bias": P(None, None, "tensor"),
    "blocks.block.attention.out.kernel": P(None, "tensor", "fsdp"),
    "blocks.block.attention.out.bias": P(None, "fsdp"),
    "blocks.block.mlp.up.kernel": P(None, "fsdp", "tensor"),
    "blocks.block.mlp.up.bias": P(None, "tensor"),
    "blocks.block.mlp.down.kernel": P(None, "tensor", "fsdp"),
    "blocks.block.mlp.down.bias": P(None, "fsdp"),
}
NORMS = ("attention_in", "attention_out", "mlp_in", "mlp_out")
REPLICATED = {f"blocks.block.{name}" for name in NORMS} | {"final_norm"}


def named(tree):
    """Dotted name -> leaf."""
    return {
        ".".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def moments(state):
    """The two moments of Adam, each a tree like the parameters."""
    adam = state.opt_state[1][0]
    return adam.mu, adam.nu


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="module")
def state(mesh):
    objective, optimizer = tiny.transformer_objective(), make_optimizer(tiny.OPTIMIZER, 10)
    with jax.set_mesh(mesh):
        shapes = state_shapes(objective, optimizer, mesh)
        return make_state(objective, optimizer, shapes, seed=3)


def test_parameters_and_moments_are_split_as_the_table_says(state):
    params = named(state.params)
    assert {n for n in params if n not in SPLIT} == {
        f"{n}.{kind}" for n in REPLICATED for kind in ("scale", "bias")
    }
    for tree in (state.params, *moments(state)):
        for name, array in named(tree).items():
            split = SPLIT.get(name, P())
            ways = [2 if axis else 1 for axis in (*split, *[None] * (array.ndim - len(split)))]
            part = tuple(size // n for size, n in zip(array.shape, ways, strict=True))
            assert {shard.data.shape for shard in array.addressable_shards} == {part}, name
            assert len(array.addressable_shards) == 8


def test_values_depend_on_the_seed_and_not_on_the_mesh(state):
    objective, optimizer = tiny.transformer_objective(), make_optimizer(tiny.OPTIMIZER, 10)
    one = make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(one):
        shapes = state_shapes(objective, optimizer, one)
        same = make_state(objective, optimizer, shapes, seed=3)
        other = make_state(objective, optimizer, shapes, seed=4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(same))
    assert not np.array_equal(same.params["word_embedding"], other.params["word_embedding"])
    assert int(state.step) == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(moments(state)))


def shard_size(leaf):
    return math.prod(leaf.sharding.shard_shape(leaf.shape))


def test_every_large_array_of_the_4b_model_is_split():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    vocabulary, config = Vocabulary(), TransformerConfig()
    layout = make_layout(LayoutConfig(), vocabulary)
    assert (vocabulary.size, layout.length) == (58240, 1089)
    objective = SequenceObjective(Transformer(config, vocabulary.size, layout.length), layout)
    state = state_shapes(objective, make_optimizer(tiny.OPTIMIZER, 10), mesh)

    # 12 matrices of width^2 a layer with their biases, four norms, embeddings and the last norm.
    width = 2560
    layer = 12 * width**2 + (3 + 1 + 4 + 1) * width + 4 * 2 * width
    expected = 48 * layer + (58240 + 1089 + 2) * width
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == expected

    for tree in (state.params, *moments(state)):
        for name, leaf in named(tree).items():
            assert leaf.sharding.spec == SPLIT.get(name, P(*[None] * leaf.ndim)), name
            assert leaf.size < 2e6 or shard_size(leaf) <= leaf.size / 4, f"{name} is replicated"
    total, a_device = (sum(map(f, jax.tree.leaves(state))) for f in (lambda x: x.size, shard_size))
    assert a_device < 1.01 * total / 8


def test_every_large_kernel_of_the_paper_codec_is_split():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    objective = CodecObjective(VQVAE(VQVAEConfig()), global_batch=8)
    state = state_shapes(objective, make_optimizer(tiny.OPTIMIZER, 10), mesh)
    for tree in (state.params, *moments(state)):
        for name, leaf in named(tree).items():
            last = None if name.startswith("decoder_out") else "fsdp"
            assert leaf.sharding.spec == P(*[None] * (leaf.ndim - 1), last), name
    # The codebook is 8 MB and read by every device: it stays whole.
    assert all(leaf.sharding.is_fully_replicated for leaf in state.model_state)


def test_a_mesh_that_does_not_divide_the_model_is_refused():
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    objective = tiny.transformer_objective(
        TransformerConfig(layers=1, width=12, heads=4, remat="none")
    )
    with pytest.raises(InputError, match=r"shape \(1, 12, 12\) cannot be split 8 ways"):
        state_shapes(objective, make_optimizer(tiny.OPTIMIZER, 10), mesh)
