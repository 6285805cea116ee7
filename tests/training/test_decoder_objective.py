"""Training what comes after the codes: its gradient written out, and nothing else that moves."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tiny
from cogview_jax.dry_run.flops import function_flops
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.codecs.vqgan import VQGANConfig
from cogview_jax.tokenizers.codecs.vqvae import VQVAE, VQVAEConfig
from cogview_jax.tokenizers.quantisers.learned import Learned
from cogview_jax.training.codec_objective import CodecObjective
from cogview_jax.training.decoder_objective import DecoderObjective
from cogview_jax.training.optimizer import make_optimizer
from cogview_jax.training.state import initial_state
from cogview_jax.training.step import make_step

CONFIG = VQVAEConfig(
    image_size=8,
    downsampling=2,
    channels=8,
    residual_blocks=1,
    codebook=16,
    code_width=4,
    quantiser=Learned(),
)
INNER = CodecObjective(VQVAE(CONFIG), global_batch=tiny.BATCH, fixed_codes=True)
OBJECTIVE = DecoderObjective(INNER)
DECAY = 0.9


@pytest.fixture(scope="module")
def run():
    """The state before a run, after every step of it, and its metrics."""
    optimizer = make_optimizer(tiny.OPTIMIZER, 3)
    rate = optax.constant_schedule(0.0)
    step = jax.jit(make_step(OBJECTIVE, optimizer, rate, seed=0, ema_decay=DECAY))
    states = [jax.jit(lambda: unbox(initial_state(OBJECTIVE, optimizer, 0, None, DECAY)))()]
    metrics = []
    for _ in range(3):
        state, measured = step(states[-1], tiny.images(0))
        states.append(state)
        metrics.append(measured)
    return states, metrics


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        VQGANConfig(
            image_size=4,
            channels=4,
            multipliers=(1, 2),
            blocks=1,
            attention=(1,),
            norm_groups=2,
            code_width=3,
        ),
    ],
    ids=["vqvae", "vqgan"],
)
def test_every_parameter_is_before_or_after_the_codes(config):
    """The encoder runs with the ones alone and the decoder with the others alone."""
    codec = config.module()
    pixels = jnp.zeros((1, config.image_size, config.image_size, 3))
    params = unbox(jax.eval_shape(codec.init, jax.random.key(0), pixels))["params"]
    before = {name: params[name] for name in config.encoder_parameters}
    after = {name: tree for name, tree in params.items() if name not in before}

    def run(method, params, x):
        return jax.eval_shape(lambda p, x: codec.apply({"params": p}, x, method=method), params, x)

    vectors = run("encode", before, pixels)
    assert run("decode", after, vectors).shape == pixels.shape
    # None of them is superfluous.
    for method, own, x in (("encode", before, pixels), ("decode", after, vectors)):
        for name in own:
            rest = {other: tree for other, tree in own.items() if other != name}
            with pytest.raises(Exception, match=name):
                run(method, rest, x)


def test_the_gradient_is_that_of_the_decoder_alone(run):
    states, metrics = run
    held = OBJECTIVE.bundle_values(states[0].values)
    image = tiny.images(0).image
    pixels = ((image / 255 - np.float32(CONFIG.mean)) / np.float32(CONFIG.std)).astype(np.float32)
    codec, codes = INNER.codec, np.asarray(held.params["quantiser"]["codes"])
    vectors = np.asarray(codec.apply({"params": held.params}, pixels, method="encode"))
    ids = ((vectors[..., None, :] - codes) ** 2).sum(axis=-1).argmin(axis=-1)

    def loss(params):
        decoded = codec.apply({"params": params}, codes[ids], method="decode")
        return jnp.mean((decoded - pixels) ** 2)

    value, gradient = jax.jit(jax.value_and_grad(loss))(states[0].params)
    assert metrics[0]["loss"] == pytest.approx(float(value), rel=1e-5)
    assert metrics[0]["grad_norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)
    share = np.bincount(ids.ravel(), minlength=CONFIG.codebook) / ids.size
    entropy = -sum(p * np.log(p) for p in share if p)
    assert metrics[0]["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-5)


def test_muon_moves_the_decoder_alone():
    config = dataclasses.replace(tiny.OPTIMIZER, muon_lr=3e-2)
    optimizer, rate = make_optimizer(config, 3), optax.constant_schedule(0.0)
    step = jax.jit(make_step(OBJECTIVE, optimizer, rate, seed=0))
    state = first = jax.jit(lambda: unbox(initial_state(OBJECTIVE, optimizer, 0, None)))()
    losses = []
    for _ in range(3):
        state, metrics = step(state, tiny.images(0))
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[1] < losses[0]
    jax.tree.map(np.testing.assert_array_equal, state.model_state.params, first.model_state.params)
    moved = jax.tree.map(lambda a, b: bool(np.all(a != b)), state.params, first.params)
    assert all(jax.tree.leaves(moved))


def test_nothing_before_the_codes_moves_or_has_moments(run):
    states, metrics = run
    first, last = (
        jax.device_get(OBJECTIVE.bundle_values(s.values)) for s in (states[0], states[3])
    )
    frozen = {*CONFIG.encoder_parameters, "quantiser"}
    for name in first.params:
        same = jax.tree.map(np.array_equal, first.params[name], last.params[name])
        assert all(jax.tree.leaves(same)) == (name in frozen), name
        average = jax.tree.map(np.array_equal, first.params[name], states[3].ema[name])
        assert all(jax.tree.leaves(average)) == (name in frozen), name
    jax.tree.map(np.testing.assert_array_equal, first.model_state, last.model_state)
    for tree in (states[3].params, states[3].opt_state[1][0].mu):
        assert set(tree) == set(first.params) - frozen
    losses = [float(measured["loss"]) for measured in metrics]
    assert losses == sorted(losses, reverse=True)


def test_flops_are_those_of_the_programs():
    """The encoder's forward pass, and forward and backward pass of the decoder."""
    codec, held = INNER.codec, jax.eval_shape(INNER.init, jax.random.key(0))
    params = unbox(held.params)
    pixels = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    encode, decode = (functools.partial(codec.apply, method=name) for name in ("encode", "decode"))
    vectors = jax.eval_shape(encode, {"params": params}, pixels)
    forth = function_flops(encode, {"params": params}, pixels)
    # A transposed convolution computes a row and a column more than it keeps.
    margins = 2 * 16 * (5 * 5 - 4 * 4) * 8 * 8
    decoding = function_flops(decode, {"params": params}, vectors) - margins
    assert OBJECTIVE.flops_per_row == forth + 3 * decoding


def convolutions(function, *arguments):
    """How many there are in a program."""
    return str(jax.make_jaxpr(function)(*arguments)).count("conv_general_dilated[")


def test_the_encoder_has_no_backward_pass():
    """Its convolutions come once, and otherwise only those of the decoder's gradient."""
    state = jax.eval_shape(lambda: unbox(initial_state(OBJECTIVE, optax.sgd(0.1), 0)))
    batch, rows, codec = tiny.images(0), jnp.arange(tiny.BATCH), INNER.codec

    def loss(params, model_state):
        return OBJECTIVE.sums(params, model_state, batch, rows, jax.random.key(0)).loss

    def encode(params):
        return codec.apply({"params": params}, batch.image.astype(np.float32), method="encode")

    def decode(params):
        vectors = jnp.zeros((tiny.BATCH, 4, 4, CONFIG.code_width))
        return jnp.sum(codec.apply({"params": params}, vectors, method="decode") ** 2)

    found = convolutions(jax.grad(loss), state.params, state.model_state)
    forth = convolutions(encode, state.model_state.params)
    assert forth > 0
    assert found == forth + convolutions(jax.grad(decode), state.params)
