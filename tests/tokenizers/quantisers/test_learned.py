"""Learned codebooks against CompVis' and LlamaGen's quantisers, gradients included."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.interop.torch_format.file import read_torch
from cogview_jax.tokenizers.quantisers.learned import BatchUse, Cosine, Learned, entropy_loss
from cogview_jax.tokenizers.quantisers.quantiser import CodebookTraining
from cogview_jax.tokenizers.quantisers.revival import Candidates

#: CompVis' code puts beta, 0.25, on the codebook unless `legacy` is off.
WEIGHTS = {"legacy": (0.25, 1.0), "fixed": (1.0, 0.25)}


def channels_last(array):
    return np.moveaxis(array, 1, -1)


def codebook(file, envelope):
    return read_torch(file)[envelope]["quantize.embedding.weight"].read().copy()


def objective(quantiser, training, codes, vectors, probe):
    """loss + mean(quantised . probe), as the oracles have it, and what the quantiser gave."""
    state = quantiser.init(jax.random.key(0), *codes.shape)[1]
    rows = jnp.arange(len(vectors))
    found = quantiser.quantise(
        training, {"codes": codes}, state, vectors, rows, len(vectors), jax.random.key(0)
    )
    return jnp.mean(found.loss) + jnp.mean(found.vectors * probe), found


def assert_gradient(found, expected):
    """Within 1e-4 of the largest entry."""
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("form", WEIGHTS)
def test_loss_and_gradients_are_those_of_compvis(oracles, form):
    """The value is the same in both forms: gradients alone tell them apart."""
    table = np.load(oracles("taming_vq/io.npz"))
    codes = codebook(oracles("taming_vq/last.ckpt"), "state_dict")
    vectors, probe = channels_last(table["b0:pre_quant"]), channels_last(table["quantiser:probe"])
    weight, commitment = WEIGHTS[form]
    quantiser, training = Learned(codebook_weight=weight), CodebookTraining(commitment=commitment)
    (_, found), (of_codes, of_vectors) = jax.jit(
        jax.value_and_grad(
            lambda codes, vectors: objective(quantiser, training, codes, vectors, probe),
            (0, 1),
            has_aux=True,
        )
    )(codes, vectors)
    loss = table[f"quantiser:{form}_loss"][0]
    assert float(jnp.mean(found.loss)) == pytest.approx(loss, abs=1e-5)
    assert_gradient(of_codes, table[f"quantiser:{form}_grad_codebook"])
    assert_gradient(of_vectors, channels_last(table[f"quantiser:{form}_grad_z"]))
    through = channels_last(table["b0:straight_through"])
    np.testing.assert_allclose(found.vectors, through, atol=1e-6)


@pytest.mark.parametrize("form", ["l2", "no_l2"])
def test_loss_and_gradients_are_those_of_llamagen(oracles, form):
    config = json.loads(oracles("llamagen/config.json").read_text())
    facts = json.loads(oracles("llamagen/facts.json").read_text())[f"train_{form}_first"]
    table = np.load(oracles("llamagen/io.npz"))
    codes = codebook(oracles("llamagen/vq.pt"), "model")
    vectors, probe = channels_last(table["b0:pre_quant"]), channels_last(table["quantiser:probe"])
    kind = Cosine if form == "l2" else Learned
    quantiser = kind(entropy_weight=config["entropy_loss_ratio"])
    training = CodebookTraining(commitment=config["commit_loss_beta"])
    (_, found), gradients = jax.jit(
        jax.value_and_grad(
            lambda codes, vectors: objective(quantiser, training, codes, vectors, probe),
            (0, 1),
            has_aux=True,
        )
    )(codes, vectors)
    for ours, theirs in zip(gradients, ("grad_codebook", "grad_z"), strict=True):
        expected = table[f"train:{form}:{theirs}:all_with_probe"]
        assert_gradient(ours, channels_last(expected) if expected.ndim == 4 else expected)
    expected = channels_last(table[f"train:{form}:z_q"])
    np.testing.assert_allclose(found.vectors, expected, atol=1e-6)
    assert float(jnp.mean(found.loss)) == pytest.approx(facts["sum"], abs=1e-5)
    commitment = training.commitment * float(jnp.mean(found.metrics["commitment"]))
    assert commitment == pytest.approx(facts["commit_loss"], abs=1e-5)
    entropy = quantiser.entropy_weight * float(jnp.mean(found.metrics["entropy"]))
    assert entropy == pytest.approx(facts["entropy_loss"], abs=1e-5)


def test_entropy_is_low_where_vectors_are_sure_and_all_codes_are_used():
    """By hand: two codes; each vector sits on one, or between both, or all on the same."""
    codes = jnp.array([[1.0, 0], [-1, 0]])
    sure = jnp.array([[[[1.0, 0], [-1, 0]]]])
    assert float(entropy_loss(codes, sure, 0.01)[0]) == pytest.approx(-np.log(2), abs=1e-4)
    unsure = jnp.zeros((1, 1, 2, 2))
    assert float(entropy_loss(codes, unsure, 0.01)[0]) == pytest.approx(0, abs=1e-4)
    alike = jnp.ones((1, 1, 2, 2))
    assert float(entropy_loss(codes, alike, 0.01)[0]) == pytest.approx(0, abs=1e-3)


def test_entropy_of_parts_has_the_gradient_of_the_whole():
    """Each part is told the mean over all rows; values and gradients add up to the whole's."""
    generator = np.random.default_rng(1)
    codes = generator.standard_normal((6, 3)).astype(np.float32)
    vectors = generator.standard_normal((4, 2, 2, 3)).astype(np.float32)
    vectors[2:] += 1

    def whole(codes, vectors):
        return jnp.sum(entropy_loss(codes, vectors, 0.5))

    shares = jax.nn.softmax(-2 * ((vectors[..., None, :] - codes) ** 2).sum(axis=-1))
    mean = shares.mean(axis=(0, 1, 2))

    def parts(codes, vectors):
        return sum(jnp.sum(entropy_loss(codes, vectors[part::2], 0.5, mean)) for part in range(2))

    (value, gradient), (expected, theirs) = (
        jax.value_and_grad(loss, (0, 1))(codes, vectors) for loss in (parts, whole)
    )
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(gradient, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_cosine_codes_do_not_follow_lengths():
    generator = np.random.default_rng(0)
    codes = generator.standard_normal((9, 4)).astype(np.float32)
    vectors = generator.standard_normal((30, 4)).astype(np.float32)
    quantiser = Cosine()
    state = quantiser.init(jax.random.key(0), *codes.shape)[1]
    ids = quantiser.encode({"codes": codes}, state, vectors)
    angles = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ (
        codes / np.linalg.norm(codes, axis=1, keepdims=True)
    ).T
    np.testing.assert_array_equal(ids, angles.argmax(axis=1))
    stretched = codes * generator.uniform(0.1, 9, (9, 1)).astype(np.float32)
    np.testing.assert_array_equal(quantiser.encode({"codes": stretched}, state, 7 * vectors), ids)
    rows = quantiser.vectors({"codes": stretched}, state, ids)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    gradient = jax.grad(lambda v: quantiser.place(v).sum())(jnp.zeros((1, 4)))
    assert np.isfinite(gradient).all()


def test_codes_that_nobody_uses_move_onto_their_candidates():
    """Of four codes, two win 20 of 40 vectors each; one dead code has no worthy candidate."""
    quantiser, training = Learned(), CodebookTraining(decay=0.5, revive_below=0.1)
    codes = jnp.arange(8.0).reshape(4, 2)
    state = quantiser.init(jax.random.key(0), 4, 2)[1]
    aux = BatchUse(
        jnp.array([20.0, 20, 0, 0]),
        jnp.float32(80),
        Candidates(jnp.full((4, 2), 9.0), jnp.array([1.0, 1, 1, 0])),
    )
    params, after, metrics = quantiser.finish(training, {"codes": codes}, state, aux)
    np.testing.assert_array_equal(params["codes"], [[0, 1], [2, 3], [9, 9], [6, 7]])
    np.testing.assert_array_equal(after.counts, [10, 10, 2, 0])
    assert after.error == 2
    assert (metrics["revived"], metrics["dead_codes"]) == (1, 1)
    assert metrics["perplexity"] == pytest.approx(2)
