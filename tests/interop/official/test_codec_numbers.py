"""The whole image tokenizer against the official one: evaluation, and its three training passes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cogview_jax.interop.official.codec import OfficialCodec, rules
from cogview_jax.interop.rules import flat
from cogview_jax.tokenizers.codecs.codec import denormalise, unclipped
from cogview_jax.tokenizers.codecs.vqvae import VQVAE
from cogview_jax.tokenizers.quantisers.gumbel import distance_logits, relax
from cogview_jax.tokenizers.quantisers.moving_average import assign, update
from cogview_jax.tokenizers.quantisers.quantiser import CodebookTraining, nearest, straight_through
from cogview_jax.training.codec_objective import CodecObjective, ImageExample
from cogview_jax.training.objective import ModelValues

#: Absolute, and of the largest entry, as fixtures/README.md has them.
OUTPUT, GRADIENT = 1e-4, 1e-4


@pytest.fixture(scope="module")
def official(fixtures):
    """The recorded weights as our codec's, and the recorded images."""
    table = np.load(fixtures / "vqvae_eval.npz")
    opened = OfficialCodec.open(fixtures / "vqvae" / "vqvae.pt")
    part = opened.part(table["ids"].shape[-1])
    params, codebook = jax.tree.map(
        lambda leaf: jnp.asarray(leaf.make()), (part.params, part.codebook)
    )
    codec = VQVAE(part.config)

    def run(method, inputs):
        return jax.jit(lambda p, x: codec.apply({"params": p}, x, method=method))(params, inputs)

    pixels = channels_last(table["images"])
    return SimpleNamespace(
        codec=codec,
        params=params,
        codebook=codebook,
        rules={rule.theirs: rule for rule in rules(opened.levels)},
        images=pixels,
        vectors=run(codec.encode, pixels),
        decode=lambda vectors: run(codec.decode, vectors),
    )


@pytest.fixture(scope="module")
def evaluated(fixtures):
    return np.load(fixtures / "vqvae_eval.npz")


@pytest.fixture(scope="module")
def trained(fixtures):
    return np.load(fixtures / "vqvae_train.npz")


def channels_last(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def close(ours, expected, atol):
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, rtol=0, atol=atol)


def test_encoder_and_codes(official, evaluated):
    close(official.vectors, evaluated["encoder_out"], OUTPUT)
    ids = nearest(official.codebook.codes, official.vectors)
    np.testing.assert_array_equal(ids, evaluated["ids"])
    np.testing.assert_array_equal(ids.reshape(len(ids), -1), evaluated["ids_flat"])
    vectors, codes = (np.float64(x) for x in (official.vectors, official.codebook.codes))
    distances = np.sum((vectors[..., None, :] - codes) ** 2, axis=-1)
    best, second = np.moveaxis(np.partition(distances, 1, axis=-1)[..., :2], -1, 0)
    close(second - best, evaluated["id_margin"], 1e-4)


def test_quantised_vectors_and_their_commitment(official, evaluated):
    quantised = official.codebook.codes[evaluated["ids"]]
    np.testing.assert_array_equal(quantised, evaluated["quant_lookup"])
    through = straight_through(official.vectors, quantised)
    close(through, channels_last(evaluated["quant_ste"]), OUTPUT)
    commitment = jnp.mean((official.vectors - quantised) ** 2)
    assert float(commitment) == pytest.approx(float(evaluated["diff"][0]), rel=1e-5)


def test_decoder_and_images(official, evaluated):
    config, codes = official.codec.config, official.codebook.codes
    np.testing.assert_allclose(config.mean, evaluated["norm_mean"], rtol=1e-7)
    np.testing.assert_allclose(config.std, evaluated["norm_std"], rtol=1e-7)
    decoded = official.decode(codes[evaluated["ids"]])
    close(decoded, channels_last(evaluated["decoded_from_ids"]), OUTPUT)
    through = official.decode(channels_last(evaluated["quant_ste"]))
    close(through, channels_last(evaluated["decoded_forward"]), OUTPUT)
    values = channels_last(evaluated["code2img"])
    close(unclipped(config, decoded), values, OUTPUT)
    close(denormalise(config, decoded), np.clip(values, 0, 1) * 255, 2e-3)
    first = evaluated["ids_flat"][:1].reshape(evaluated["ids"][:1].shape)
    alone = unclipped(config, official.decode(codes[first]))
    close(alone, channels_last(evaluated["code2img_flat_first"]), OUTPUT)


@pytest.fixture(scope="module")
def hard_pass(official, trained):
    """What the objective makes of the recorded batch: terms, gradients, codebook after it."""
    objective = CodecObjective(
        official.codec,
        global_batch=len(official.images),
        codebook=CodebookTraining(revive_below=0.0),
    )
    np.testing.assert_array_equal(official.images, channels_last(trained["images"]))
    batch = ImageExample(unclipped(official.codec.config, official.images) * 255)
    rows = jnp.arange(len(official.images))

    @jax.jit
    def run(params):
        def loss(params):
            sums = objective.sums(params, official.codebook, batch, rows, jax.random.key(0))
            return sums.loss / objective.normalizer(batch), sums

        gradients, terms = jax.grad(loss, has_aux=True)(params)
        values = ModelValues({}, official.codebook)
        (_, after), _ = objective.finish(values, terms.aux)
        return terms, gradients, after

    return run(official.params)


def test_loss_and_commitment_of_a_training_pass(hard_pass, official, trained):
    terms, _, _ = hard_pass
    count = len(official.images)
    assert float(terms.loss) / count == pytest.approx(float(trained["loss"]), rel=1e-5)
    commitment, images = terms.metrics["commitment"]
    assert float(commitment / images) == pytest.approx(float(trained["diff"][0]), rel=1e-5)
    quantised = official.codebook.codes[nearest(official.codebook.codes, official.vectors)]
    decoded = official.decode(straight_through(official.vectors, quantised))
    close(decoded, channels_last(trained["decoded"]), OUTPUT)


def test_gradients_of_a_training_pass(hard_pass, official, trained):
    gradients = flat({"params": hard_pass[1]})
    names = [name.removeprefix("grad:") for name in trained if name.startswith("grad:")]
    assert names
    for name in names:
        rule, expected = official.rules[name], trained[f"grad:{name}"]
        ours = rule.form.theirs(np.asarray(gradients[rule.ours]))
        close(ours, expected, GRADIENT * np.abs(expected).max())


def test_codebook_after_a_training_pass(hard_pass, trained):
    check_codebook(hard_pass[2], trained, "", ("embed", "cluster_size", "embed_avg"))


def check_codebook(codebook, trained, prefix, names):
    ours = {"embed": codebook.codes.T, "cluster_size": codebook.counts}
    ours["embed_avg"] = codebook.sums.T
    for name in names:
        expected = trained[f"{prefix}{name}_after"]
        close(ours[name], expected, GRADIENT * np.abs(expected).max())


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_gumbel_relaxations(official, trained, form):
    """With the recorded noise; the codebook moves in the hard form only."""
    codes, shape = official.codebook.codes, official.vectors.shape[:-1]
    noise = trained[f"gumbel_{form}_noise"].reshape(*shape, -1)
    temperature = float(trained["gumbel_temperature"])
    relaxed = relax(
        distance_logits(codes, official.vectors), codes, noise, temperature, hard=form == "hard"
    )
    np.testing.assert_array_equal(relaxed.ids, trained[f"gumbel_{form}_ids"])
    close(relaxed.quantised, channels_last(trained[f"gumbel_{form}_quant"]), 5e-5)
    assert float(jnp.mean(relaxed.kl)) == pytest.approx(
        float(trained[f"gumbel_{form}_kl"][0]), rel=1e-5
    )
    if form == "soft":
        decoded = official.decode(relaxed.quantised)
        close(decoded, channels_last(trained["gumbel_soft_decoded"]), 1e-4)
        return
    vectors = official.vectors.reshape(-1, codes.shape[1])
    hits = assign(codes, vectors, relaxed.ids.reshape(-1))
    after = update(official.codebook, hits, 0.99)
    check_codebook(after, trained, "gumbel_hard_", ("embed", "cluster_size"))
