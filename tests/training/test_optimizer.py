"""AdamW against numpy; schedules and the decay mask by hand and against the release's."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cogview_jax.interop.official.transformer import RULES, OfficialTransformer
from cogview_jax.interop.rules import flat, tensor_sources
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codecs.vqvae import VQVAE, VQVAEConfig
from cogview_jax.tokenizers.layout import LayoutConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.muon import scale_by_muon
from cogview_jax.training.optimizer import (
    SCHEDULES,
    OptimizerConfig,
    decay_mask,
    make_optimizer,
    schedule,
)

#: The release's names of its schedules.
OFFICIAL = {
    "cosine": "official_cosine",
    "linear": "official_linear",
    "constant": "constant",
    "exponential": "constant",
}


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


def official_cases(fixtures):
    """Each recorded schedule as (config, steps, iterations, rates after so many steps)."""
    cases = json.loads((fixtures / "lr_schedule.json").read_text())["cases"]
    assert cases
    for case in cases:
        told = case["setting"]
        config = OptimizerConfig(
            lr=told["start_lr"],
            warmup=told["warmup"],
            floor=told["ratio"],
            schedule=OFFICIAL[told["style"]],
        )
        yield config, told["num_iters"], np.array(case["iterations"]), np.array(case["lr"])


def test_rates_on_the_host_are_the_official_ones_to_the_last_digits(fixtures):
    for config, steps, iterations, rates in official_cases(fixtures):
        rate = schedule(config, steps)
        ours = np.array([rate(int(k)) for k in iterations])
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, rates, rtol=1e-12, atol=1e-16 * config.lr)
        np.testing.assert_array_equal(rate(iterations), ours)


def test_rates_within_a_jitted_step_are_the_official_ones(fixtures):
    for config, steps, iterations, rates in official_cases(fixtures):
        ours = jax.jit(schedule(config, steps))(jnp.asarray(iterations, jnp.int32))
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, rates, rtol=1e-6, atol=2e-7 * config.lr)


@pytest.mark.parametrize("name", SCHEDULES)
def test_no_step_of_a_run_has_a_negative_rate_and_only_the_first_has_none(name):
    config = OptimizerConfig(lr=1.0, warmup=0.1, floor=0.0, schedule=name)
    rates = [float(schedule(config, 20)(i)) for i in range(20)]
    assert rates[0] == 0
    assert min(rates[1:]) > 0
    assert max(rates) == pytest.approx(1.0)


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


def test_muon_updates_kernels_and_adamw_the_rest():
    """At its own rate on the same schedule, with the same clipping and weight decay."""
    config = OptimizerConfig(lr=0.1, muon_lr=0.3, weight_decay=0.2, warmup=0.25, clip=3.0)
    alone = OptimizerConfig(lr=0.1, weight_decay=0.2, warmup=0.25, clip=3.0)
    rng = np.random.default_rng(0)
    shapes = {"kernel": (2, 6, 4), "bias": (2, 4)}

    def made(size):
        values = {n: (size * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}
        embedding, judging = (
            (size * rng.standard_normal((5, 2))).astype(np.float32) for _ in range(2)
        )
        return {
            "blocks": {"mlp": values},
            "word_embedding": embedding,
            "discriminator": {"kernel": judging},
        }

    params, gradients = made(1.0), [made(size) for size in (0.3, 5.0, 1.0)]
    both, only = make_optimizer(config, 8), make_optimizer(alone, 8)
    state, other = both.init(params), only.init(params)
    muon = scale_by_muon(config.beta1)
    momentum = muon.init({"blocks": params["blocks"]["mlp"]["kernel"]})
    for step, gradient in enumerate(gradients):
        updates, state = both.update(gradient, state, params)
        expected, other = only.update(gradient, other, params)
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in jax.tree.leaves(gradient)))
        kernel = gradient["blocks"]["mlp"]["kernel"] * min(1, config.clip / norm)
        turned, momentum = muon.update({"blocks": jnp.asarray(kernel, jnp.float32)}, momentum)
        decayed = turned["blocks"] + config.weight_decay * params["blocks"]["mlp"]["kernel"]
        expected["blocks"]["mlp"]["kernel"] = -3 * schedule(alone, 8)(step) * decayed
        jax.tree.map(
            lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6),
            updates,
            expected,
        )


def test_muon_without_a_matrix_to_update_is_refused():
    optimizer = make_optimizer(OptimizerConfig(muon_lr=1e-3), 8)
    with pytest.raises(InputError, match=r"optimizer\.muon_lr.*trains none.*expected 0"):
        optimizer.init({"blocks": {"qkv": {"lora_A": jnp.zeros((2, 4, 1))}}})


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

    config = VQVAEConfig(image_size=8, downsampling=2, channels=8, residual_blocks=1)
    decayed, undecayed = masked(VQVAE(config), jnp.zeros((1, 8, 8, 3)))
    assert {name.removesuffix(".kernel") for name in decayed} == {
        name.removesuffix(".bias") for name in undecayed
    }


def test_the_decayed_parameters_are_those_of_the_release(fixtures):
    told = json.loads((fixtures / "weight_decay_groups.json").read_text())
    official = OfficialTransformer.open(fixtures / "transformer")
    sizes = json.loads((fixtures / "config.json").read_text())["config"]
    vocabulary = Vocabulary(sizes["n_img"], sizes["n_txt"])
    params = official.part(sizes["heads"], vocabulary, LayoutConfig()).params
    decayed = flat(decay_mask(params))
    groups = {True: set(), False: set()}
    for name, source in tensor_sources(RULES, params).items():
        groups[decayed[source.rule.ours]].add(name)
    assert groups[True] == set(told["decay"])
    assert groups[False] == set(told["no_decay"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "lr = 0.0: expected above 0"),
        ({"clip": -1.0}, "clip = -1.0: expected above 0"),
        ({"warmup": 1.0}, "warmup = 1.0: expected at least 0 and below 1"),
        ({"schedule": "step"}, "schedule 'step': choose from cosine, official_cosine, official_l"),
        ({"floor": 2.0}, "floor = 2.0: expected 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**settings)
