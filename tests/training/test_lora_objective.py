"""Training adapters: the base stays, costs nothing, and any mesh computes the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from cogview_jax.dry_run.flops import function_flops
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.lora import LoRAConfig, with_adapters
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.mesh import MeshConfig, make_mesh, place_batch
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.layout import make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.lora_objective import LoRAObjective
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import initial_state, state_shapes
from cogview_jax.training.step import make_step

LORA = LoRAConfig(rank=4, alpha=8.0)
OPTIMIZER, RATE = (make(tiny.OPTIMIZER, 10) for make in (make_optimizer, schedule))
EMA = 0.5


def objective_of(lora=LORA, precision="float32", **changes):
    plain = tiny.transformer_objective(
        dataclasses.replace(tiny.TRANSFORMER, **changes), policy(precision)
    )
    return LoRAObjective(plain.model, plain.layout, plain.text_weight, lora)


def base_of(dtype=jnp.float32):
    params = tiny.start(tiny.transformer_objective()).params
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)


def start(objective, sizes, dtype=jnp.float32, ema_decay=0.0):
    """The state before step 0, placed; its base is drawn by numpy."""
    mesh = make_mesh(sizes, jax.devices()[: np.prod([sizes.data, sizes.fsdp, sizes.tensor])])
    shapes = state_shapes(objective, OPTIMIZER, mesh, ema_decay=ema_decay)
    values = unbox(objective.init(jax.random.key(0)))._replace(model_state=base_of(dtype))
    ema = jax.tree.map(jnp.copy, values.params) if ema_decay else ()
    state = dataclasses.replace(
        shapes, step=jnp.int32(0), opt_state=OPTIMIZER.init(values.params), ema=ema
    ).with_values(values)
    placed = jax.tree.map(lambda leaf, shape: jax.device_put(leaf, shape.sharding), state, shapes)
    return placed, mesh


def steps(objective, sizes, count=3, accumulate=1, **start_as):
    state, mesh = start(objective, sizes, **start_as)
    decay = start_as.get("ema_decay", 0.0)
    step = make_step(*(objective, OPTIMIZER, RATE), seed=0, accumulate=accumulate, ema_decay=decay)
    losses = []
    with jax.set_mesh(mesh):
        step = jax.jit(step, donate_argnums=0)
        for number in range(count):
            state, metrics = step(state, place_batch(tiny.sequences(number), mesh))
            losses.append(float(metrics["loss"]))
    return jax.device_get(state), losses


@pytest.fixture(scope="module")
def alone():
    return steps(objective_of(), MeshConfig(data=1))


def test_the_first_loss_is_that_of_the_base_and_later_ones_are_lower(alone):
    state, losses = alone
    plain, batch = tiny.transformer_objective(), tiny.sequences(0)
    sums = jax.jit(plain.sums)(base_of(), (), batch, np.arange(tiny.BATCH), jax.random.key(0))
    assert losses[0] == float(sums.loss / plain.normalizer(batch))
    # The same batch again, with what the adapters have learned.
    joined = with_adapters(base_of(), state.params, LORA.scale)
    after = jax.jit(plain.sums)(joined, (), batch, np.arange(tiny.BATCH), jax.random.key(0))
    assert after.loss < 0.95 * sums.loss


def test_the_base_is_the_same_bit_for_bit_and_every_adapter_has_moved(alone):
    state, _ = alone
    jax.tree.map(np.testing.assert_array_equal, state.model_state, jax.device_get(base_of()))
    before = unbox(objective_of().init(jax.random.key(0))).params
    moved = jax.tree.map(lambda one, other: np.abs(one - other).max(), state.params, before)
    assert min(jax.tree.leaves(moved)) > 1e-4


@pytest.mark.parametrize(
    ("sizes", "changes", "accumulate"),
    [
        (MeshConfig(data=2, fsdp=2, tensor=2), {"remat": "full"}, 1),
        (MeshConfig(data=1), {"remat": "dots", "unroll": 2}, 4),
    ],
)
def test_split_recomputed_or_accumulated_it_is_the_same(alone, sizes, changes, accumulate):
    state, losses = steps(objective_of(**changes), sizes, accumulate=accumulate)
    assert losses == pytest.approx(alone[1], rel=1e-5)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5),
        state.params,
        alone[0].params,
    )


def test_adapters_are_split_over_all_devices_that_share_parameters():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shapes = state_shapes(objective_of(), OPTIMIZER, mesh)
    for leaf in jax.tree.leaves(shapes.params):
        assert leaf.sharding.num_devices == 8
        assert np.prod(leaf.sharding.shard_shape(leaf.shape)) == np.prod(leaf.shape) // 4


def bytes_of(tree):
    return sum(np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def gradients_and_moments(objective):
    """Bytes of the gradient and of the optimizer's state; and the whole state, in shapes."""
    state = jax.eval_shape(lambda: unbox(initial_state(objective, OPTIMIZER, 0)))
    batch, rows = tiny.sequences(0), np.arange(tiny.BATCH)

    def gradient(params, model_state):
        sums = objective.sums
        return jax.grad(lambda p: sums(p, model_state, batch, rows, jax.random.key(0)).loss)(params)

    gradients = jax.eval_shape(gradient, state.params, state.model_state)
    return bytes_of(gradients) + bytes_of(state.opt_state), state


def test_gradients_and_moments_take_a_twentieth_of_full_finetuning():
    """The 4B model; counted in shapes, so nothing of it is made."""
    layout = make_layout(tiny.LAYOUT, tiny.VOCABULARY)
    model = Transformer(TransformerConfig(), Vocabulary().size, 1089, vocabulary=tiny.VOCABULARY)
    full, _ = gradients_and_moments(SequenceObjective(model, layout))
    lora = LoRAConfig(rank=64, base_dtype="bfloat16")
    small, state = gradients_and_moments(LoRAObjective(model, layout, 1.0, lora))
    assert full == pytest.approx(3 * 4 * 3.93e9, rel=0.01)
    assert small < 0.05 * full
    # Written out: the adapters of 48 layers of width 2560, and the base in two bytes a number.
    widths = 4 * 2560 + 2 * 2560 + 2 * (2560 + 10240)
    assert bytes_of(state.params) == 4 * 48 * 64 * widths
    assert bytes_of(state.model_state) == pytest.approx(2 * 3.93e9, rel=0.001)


def test_a_base_in_half_precision_stays_so_and_adapters_do_not(alone):
    lora = dataclasses.replace(LORA, base_dtype="bfloat16")
    objective = objective_of(lora, "bfloat16")
    state, losses = steps(objective, MeshConfig(data=1), dtype=jnp.bfloat16, ema_decay=EMA)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.model_state)} == {np.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.ema))} == {np.dtype("f4")}
    assert losses == pytest.approx(alone[1], rel=0.02)
    # The average is of the adapters alone.
    assert jax.tree.structure(state.ema) == jax.tree.structure(state.params)


def test_flops_leave_out_the_gradients_of_frozen_kernels():
    """Against the matrix products of the program."""
    objective, state = objective_of(), base_of()
    adapters = unbox(objective.init(jax.random.key(0))).params
    batch, rows = tiny.sequences(0), np.arange(tiny.BATCH)

    def gradient(adapters):
        sums = objective.sums
        return jax.grad(lambda a: sums(a, state, batch, rows, jax.random.key(0)).loss)(adapters)

    counted = function_flops(gradient, adapters)
    assert counted == pytest.approx(objective.flops_per_row * tiny.BATCH, rel=0.05)
