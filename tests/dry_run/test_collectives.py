"""Programs whose collectives are known, and lines as other backends write them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cogview_jax.dry_run.collectives import Collective, collectives
from cogview_jax.runtime.mesh import MeshConfig, make_mesh


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=4))


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_loops_within_loops_are_multiplied(mesh):
    """A sum over the four of `fsdp`, five times in each of three rounds, and one gathering."""

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False
    )
    def function(x):
        def inner(x, _):
            return jax.lax.psum(jnp.sin(x), "fsdp"), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=5)[0], None

        x = jax.lax.scan(outer, x, length=3)[0]
        gathered = jax.lax.all_gather(x, "data")
        return jnp.cos(gathered).sum(axis=0)

    found = collectives(compiled(function, jnp.ones((16, 8))))
    # A device has [4, 8] of float32; two of them gathered are twice that.
    assert sorted(found, key=lambda one: one.kind) == [
        Collective("all-gather", 2, 2 * 4 * 8 * 4, 1),
        Collective("all-reduce", 4, 4 * 8 * 4, 15),
    ]
    assert found[0].sent + found[1].sent == 15 * 2 * 3 / 4 * 128 + 1 / 2 * 256


def test_a_program_of_one_device_sends_nothing():
    assert collectives(compiled(lambda x: x @ x, jnp.ones((8, 8)))) == []


def test_a_matrix_split_along_its_sum_is_reduced_once(mesh):
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp")))
    y = jax.ShapeDtypeStruct((16, 4), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp", None)))
    step = jax.jit(lambda x, y: x @ y.astype(jnp.float32), out_shardings=NamedSharding(mesh, P()))
    found = collectives(step.lower(x, y).compile().as_text())
    assert found == [Collective("all-reduce", 4, 8 * 4 * 4, 1)]


PROGRAM = """
HloModule step

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %r = f32[4]{0} all-reduce(%x), replica_groups={{0,1,2},{3,4,5}}, to_apply=%add
}

ENTRY %main (a: bf16[8,2]) -> f32[4] {
  %g = (bf16[8,2]{1,0}, bf16[32,2]{1,0}) all-gather-start(%a), replica_groups=[2,4]<=[8]
  %d = bf16[32,2]{1,0} all-gather-done(%g)
  %s = f32[2,2]{1,0} reduce-scatter(%d), replica_groups=mesh['x'=2,'y'=4] {'y'}, to_apply=%add
  %p = f32[2,2]{1,0} collective-permute(%s), source_target_pairs={{0,1},{1,0}}
  %w = (s32[], f32[4]) while(%t), body=%body, backend_config={"known_trip_count":{"n":"7"}}
}
"""


def test_lines_as_other_backends_write_them():
    assert collectives(PROGRAM) == [
        Collective("all-gather", 4, 128, 1, "bf16"),
        Collective("reduce-scatter", 4, 64, 1),
        Collective("collective-permute", 2, 16, 1),
        Collective("all-reduce", 3, 16, 7),
    ]


def test_an_endless_loop_is_not_guessed():
    with pytest.raises(ValueError, match="does not say how often it runs"):
        collectives(PROGRAM.replace("known_trip_count", "unknown"))
