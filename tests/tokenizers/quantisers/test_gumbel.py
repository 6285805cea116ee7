"""Sampling through the Gumbel softmax against loops, and against CompVis' quantiser."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import reference
from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.tokenizers.quantisers.gumbel import (
    Gumbel,
    GumbelProjection,
    distance_logits,
    relax,
)
from cogview_jax.tokenizers.quantisers.quantiser import CodebookTraining

K, D, N = 12, 4, 50


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)


@pytest.fixture(scope="module")
def book():
    return np.random.default_rng(1).standard_normal((K, D)).astype(np.float32)


def gumbel(seed):
    return np.random.default_rng(seed).gumbel(size=(N, K)).astype(np.float32)


def test_relaxed_codes_equal_loops(book, vectors):
    noise, temperature = gumbel(2), 0.7
    result = relax(distance_logits(book, vectors), book, noise, temperature, hard=False)
    divergences = []
    for i, vector in enumerate(vectors.astype(np.float64)):
        logits = -np.array([np.sum((vector - code) ** 2) for code in book])
        shares = np.exp((logits + noise[i]) / temperature)
        mixed = shares / shares.sum() @ book
        np.testing.assert_allclose(result.quantised[i], mixed, atol=1e-5)
        assert result.ids[i] == np.argmax(logits + noise[i])
        likely = np.exp(logits) / np.exp(logits).sum()
        divergences.append(sum(p * np.log(p * K) for p in likely))
    assert result.ids.dtype == jnp.int32
    np.testing.assert_allclose(result.kl, divergences, rtol=1e-4, atol=1e-6)


def test_the_hard_form_is_a_code_forward_and_the_relaxation_backward(book, vectors):
    weights = np.arange(N * D, dtype=np.float32).reshape(N, D)

    def value(v, codes, hard):
        result = relax(distance_logits(codes, v), codes, gumbel(3), 0.9, hard=hard)
        return jnp.sum(result.quantised * weights), result

    gradients = {}
    for hard in (True, False):
        gradients[hard], result = jax.grad(value, has_aux=True)(vectors, book, hard)
        exact = np.allclose(result.quantised, book[result.ids], atol=1e-5)
        assert exact == hard
    assert np.abs(gradients[True]).max() > 1
    np.testing.assert_allclose(gradients[True], gradients[False], rtol=1e-4, atol=1e-3)


def test_without_noise_a_cold_relaxation_is_the_nearest_code(book, vectors):
    result = relax(
        distance_logits(book, vectors), book, np.zeros((N, K), np.float32), 1e-5, hard=False
    )
    ids = reference.nearest(book, vectors)
    np.testing.assert_array_equal(result.ids, ids)
    np.testing.assert_allclose(result.quantised, book[ids], atol=1e-3)


@pytest.mark.parametrize("form", ["eval", "train_soft", "train_hard"])
def test_samples_are_those_of_compvis(oracles, form):
    """With its noise: what the decoder reads, the ids, and the divergence."""
    config = json.loads(oracles("taming_gumbel/config.json").read_text())["model"]["params"]
    table = np.load(oracles("taming_gumbel/io.npz"))
    state = read_torch(oracles("taming_gumbel/last.ckpt"))["state_dict"]
    codes = state["quantize.embed.weight"].read()
    params = {
        "kernel": state["quantize.proj.weight"].read()[:, :, 0, 0].T,
        "bias": state["quantize.proj.bias"].read(),
    }
    vectors, noise = (np.moveaxis(table[name], 1, -1) for name in ("pre_quant", "noise"))
    logits = GumbelProjection().logits(params, vectors)
    np.testing.assert_allclose(logits, np.moveaxis(table["logits"], 1, -1), atol=1e-4)
    temperature = float(table["temperature"][["eval", "train_soft", "train_hard"].index(form)])
    sampled = relax(logits, codes, noise, temperature, hard=form != "train_soft")
    np.testing.assert_array_equal(sampled.ids, table[f"{form}:indices"])
    expected = np.moveaxis(table[f"{form}:z_q"], 1, -1)
    np.testing.assert_allclose(sampled.quantised, expected, atol=1e-4)
    kl = config["kl_weight"] * float(jnp.mean(sampled.kl))
    assert kl == pytest.approx(float(table[f"{form}:kl"][0]), rel=1e-5)


def test_the_temperature_falls_as_that_of_compvis(oracles):
    facts = json.loads(oracles("taming_vq/facts.json").read_text())["gumbel_temperature"]
    quantiser = Gumbel(temperature=0.9, last_temperature=1e-6, anneal_steps=1_000_001)
    for step, expected in facts.items():
        assert float(quantiser.temperature_at(int(step))) == pytest.approx(expected, abs=1e-6)


def test_a_part_of_a_batch_has_the_noise_of_its_rows(book):
    quantiser, training = Gumbel(), CodebookTraining()
    state = quantiser.init(jax.random.key(0), K, D)[1]
    vectors = np.random.default_rng(5).standard_normal((4, 2, 3, D)).astype(np.float32)

    def quantised(rows):
        return quantiser.quantise(
            training,
            {"codes": book},
            state,
            jnp.asarray(vectors[rows]),
            jnp.asarray(rows),
            4,
            jax.random.key(7),
        )

    whole, part = quantised(np.arange(4)), quantised(np.array([1, 3]))
    np.testing.assert_allclose(part.vectors, whole.vectors[np.array([1, 3])], atol=1e-6)
    assert not np.allclose(whole.vectors[0], whole.vectors[1])
    after = quantiser.finish(training, {"codes": book}, state, whole.aux)[1]
    assert after.steps == 1
    assert float(after.counts.sum()) == pytest.approx(0.01 * 24)
