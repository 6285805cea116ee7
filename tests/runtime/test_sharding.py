"""Names of dimensions become splits over the mesh; what Flax would ignore is an error."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.sharding import constrain, sharded_shapes, spec, unbox


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


def boxed(shape, *names):
    """The shape of a parameter made with `names`, as eval_shape of an initialisation gives it."""
    initialiser = nn.with_logical_partitioning(nn.initializers.zeros, names)
    return jax.eval_shape(lambda: initialiser(jax.random.key(0), shape, jnp.float32))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("batch", "sequence", "width"), P(("data", "fsdp"), None, None)),
        (("batch", None, "heads"), P(("data", "fsdp"), None, "tensor")),
        (("layers", "embed", "qkv", "heads"), P(None, "fsdp", None, "tensor")),
        (("vocabulary", "embed"), P("tensor", "fsdp")),
        (("tap", "tap", "channels_in", "channels_out"), P(None, None, None, "fsdp")),
    ],
)
def test_names_become_mesh_axes(names, expected):
    assert spec(names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("embed", "head"), "unknown logical axis 'head'; choose from adapter, batch, .*heads"),
        (("heads", "mlp"), "'heads' and 'mlp' both claim the mesh axis 'tensor'"),
        (("batch", "embed"), "'batch' and 'embed' both claim the mesh axis 'fsdp'"),
        (("embed", "embed"), "'embed' and 'embed' both claim"),
    ],
)
def test_what_flax_would_replicate_is_refused(names, message, mesh):
    with pytest.raises(InputError, match=message):
        spec(names)
    with pytest.raises(InputError, match=message):
        constrain(jnp.zeros((4, 4)), *names)
    with pytest.raises(InputError, match=message):
        sharded_shapes({"kernel": boxed((4, 4), *names)}, mesh)


def test_a_constraint_is_in_the_program_and_splits_the_value(mesh):
    @jax.jit
    def double(x):
        return constrain(2 * x, "batch", "heads")

    x = jnp.arange(32.0).reshape(8, 4)
    assert double.lower(x).as_text().count("sharding_constraint") == 0
    with jax.set_mesh(mesh):
        assert double.lower(x).as_text().count("sharding_constraint") == 1
        y = double(x)
    assert {shard.data.shape for shard in y.addressable_shards} == {(2, 2)}
    assert (y == 2 * x).all()


def test_a_batch_that_cannot_be_split_stays_whole(mesh):
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(x, "batch", "heads"))(jnp.arange(24.0).reshape(6, 4))
    assert {shard.data.shape for shard in y.addressable_shards} == {(6, 2)}


def test_a_constraint_names_every_dimension():
    with pytest.raises(InputError, match=r"1 logical axes .* array of shape \(2, 3\)"):
        constrain(jnp.zeros((2, 3)), "batch")


def test_shapes_take_the_split_of_their_names(mesh):
    tree = {
        "kernel": boxed((6, 3, 8), "embed", "qkv", "heads"),
        "step": jax.ShapeDtypeStruct((), jnp.int32),
    }
    shapes = sharded_shapes(tree, mesh)
    kernel = shapes["kernel"]
    assert (kernel.shape, kernel.dtype) == ((6, 3, 8), jnp.float32)
    assert kernel.sharding.spec == P("fsdp", None, "tensor")
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 3, 4)
    assert shapes["step"].sharding.is_fully_replicated
    assert jax.tree.structure(shapes) == jax.tree.structure(unbox(tree))

    whole = sharded_shapes(tree)["kernel"].sharding
    assert whole.device_set == {jax.local_devices()[0]}


def test_a_dimension_that_cannot_be_split_is_refused(mesh):
    message = r"shape \(7, 8\) cannot be split 2 ways over fsdp; choose mesh sizes that divide 7"
    with pytest.raises(InputError, match=message):
        sharded_shapes({"kernel": boxed((7, 8), "embed", "heads")}, mesh)
    shapes = sharded_shapes({"x": boxed((4, 8), "batch", "heads")}, mesh)
    assert shapes["x"].sharding.shard_shape((4, 8)) == (1, 4)
    with pytest.raises(InputError, match=r"\(6, 8\) cannot be split 4 ways over \('data', 'fsdp'"):
        sharded_shapes({"x": boxed((6, 8), "batch", "heads")}, mesh)


def test_a_large_parameter_is_split_where_the_mesh_splits_parameters(mesh):
    large, small = boxed((2048, 2048), None, "norm"), boxed((2048, 2047), None, "norm")
    with pytest.raises(InputError, match=r"\['table'\] of shape \(2048, 2048\) would lie whole"):
        sharded_shapes({"table": large}, mesh)
    assert sharded_shapes({"table": small}, mesh)["table"].sharding.is_fully_replicated
    split = sharded_shapes({"table": boxed((2048, 2048), None, "mlp")}, mesh)["table"]
    assert split.sharding.spec == P(None, "tensor")
    # Copies of the whole model are what a mesh of data alone means.
    copies = make_mesh(MeshConfig())
    assert sharded_shapes({"table": large}, copies)["table"].sharding.is_fully_replicated


def test_an_array_without_names_counts_as_whole(mesh):
    with pytest.raises(InputError, match="would lie whole on every device"):
        sharded_shapes({"table": jax.ShapeDtypeStruct((4096, 4096), jnp.float32)}, mesh)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (2, 2, 2)], ids=str)
def test_every_large_parameter_of_the_4b_model_is_split(sizes):
    """Of what one device holds, little more is whole than its share."""
    model = Transformer(TransformerConfig(), 58_240, 1089)
    shapes = sharded_shapes(transformer_shapes(model), make_mesh(MeshConfig(*sizes)))
    total = held = 0
    for leaf in jax.tree.leaves(shapes):
        total += leaf.size
        held += math.prod(leaf.sharding.shard_shape(leaf.shape))
    assert total == 3_928_849_920
    ways = sizes[1] * sizes[2]
    assert held < 1.01 * total / ways
