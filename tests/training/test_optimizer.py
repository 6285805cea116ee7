"""The update against AdamW written out in numpy; the schedule and the decay mask by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codec import Codec, CodecConfig
from cogview_jax.training.optimizer import OptimizerConfig, decay_mask, make_optimizer, schedule


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (5, 0.5), (10, 1.0), (55, 0.1 + 0.9 / 2), (40, 0.1 + 0.9 * 0.75), (100, 0.1)],
)
def test_schedule_rises_linearly_and_falls_as_a_cosine_to_the_floor(step, rate):
    config = OptimizerConfig(lr=2.0, warmup=0.1, floor=0.1)
    assert schedule(config, 100)(step) == pytest.approx(2 * rate, rel=1e-6)


def test_schedule_stays_at_the_floor_and_may_have_no_warmup():
    config = OptimizerConfig(lr=1.0, warmup=0.0, floor=0.25)
    assert schedule(config, 8)(0) == 1.0
    assert schedule(config, 8)(100) == pytest.approx(0.25)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_schedule_of_a_short_run_has_a_rate_for_every_step(steps):
    rates = [schedule(OptimizerConfig(lr=1.0, warmup=0.97), steps)(i) for i in range(steps)]
    assert np.isfinite(rates).all()
    assert max(rates) > 0


def numpy_adamw(config, rates, params, gradients):
    """Parameters after each of several gradients: clip, moments, bias correction, decay."""
    params = {name: value.astype(np.float64) for name, value in params.items()}
    first = {name: 0.0 for name in params}
    second = {name: 0.0 for name in params}
    for count, (rate, gradient) in enumerate(zip(rates, gradients, strict=True), start=1):
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradient.values()))
        for name in params:
            g = gradient[name] * min(1, config.clip / norm)
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            mean = first[name] / (1 - config.beta1**count)
            square = second[name] / (1 - config.beta2**count)
            step = mean / (np.sqrt(square) + config.epsilon)
            if name not in ("scale", "bias"):
                step = step + config.weight_decay * params[name]
            params[name] = params[name] - rate * step
    return params


def test_update_is_adamw_with_clipping_schedule_and_decay():
    config = OptimizerConfig(lr=0.1, weight_decay=0.2, warmup=0.25, floor=0.1, clip=3.0)
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,), "scale": (3,), "word_embedding": (5, 2)}

    def draw(size):
        return {n: (size * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}

    start = draw(1.0)
    gradients = [draw(size) for size in (0.3, 5.0, 0.1, 20.0, 0.3, 1.0, 0.2, 0.6)]
    norms = [np.sqrt(sum(np.sum(g**2) for g in gradient.values())) for gradient in gradients]
    assert min(norms) < config.clip < max(norms)

    optimizer = make_optimizer(config, 8)
    params, state = start, optimizer.init(start)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

    cosine = [0.01 + 0.09 * (1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)]
    expected = numpy_adamw(config, [0.0, 0.05, *cosine], start, gradients)
    for name in shapes:
        np.testing.assert_allclose(params[name], expected[name], rtol=2e-6, atol=1e-7)


def masked(model, *inputs):
    """The dotted names of the parameters that are decayed, and of those that are not."""
    params = unbox(jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"])
    decayed, undecayed = set(), set()
    for path, value in jax.tree.leaves_with_path(decay_mask(params)):
        (decayed if value else undecayed).add(".".join(key.key for key in path))
    return decayed, undecayed


def test_exactly_layernorms_and_biases_are_undecayed():
    config = TransformerConfig(layers=2, width=8, heads=2)
    tokens = jnp.zeros((1, 1), jnp.int32)
    decayed, undecayed = masked(Transformer(config, 16, 4), tokens, tokens)
    maps = {f"blocks.block.{name}" for name in ("attention.qkv", "attention.out", "mlp.up")}
    maps.add("blocks.block.mlp.down")
    norms = {
        f"blocks.block.{branch}_{end}" for branch in ("attention", "mlp") for end in ("in", "out")
    }
    norms.add("final_norm")
    assert decayed == {"word_embedding", "position_embedding"} | {f"{m}.kernel" for m in maps}
    assert undecayed == {f"{m}.bias" for m in maps | norms} | {f"{n}.scale" for n in norms}

    config = CodecConfig(image_size=8, downsampling=2, channels=8, residual_blocks=1)
    decayed, undecayed = masked(Codec(config), jnp.zeros((1, 8, 8, 3)))
    assert {name.removesuffix(".kernel") for name in decayed} == {
        name.removesuffix(".bias") for name in undecayed
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr 0.0 and clip 1.0: both are above 0"),
        ({"clip": -1.0}, "clip -1.0: both are above 0"),
        ({"warmup": 1.0}, "warmup 1.0 .* shares between 0 and 1"),
        ({"floor": 2.0}, "floor 2.0: both are shares between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**settings)
