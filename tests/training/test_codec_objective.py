"""The loss of images in loops; what the codebook learns from a batch, whole or in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny
from cogview_jax.tokenizers.codecs.vqvae import VQVAE, VQVAEConfig
from cogview_jax.tokenizers.quantisers.moving_average import Assignments, BatchVectors, Codebook
from cogview_jax.tokenizers.quantisers.quantiser import CodebookTraining
from cogview_jax.tokenizers.quantisers.revival import Candidates
from cogview_jax.training.codec_objective import (
    CodecObjective,
    ImageExample,
    training_flops,
)
from cogview_jax.training.objective import ModelValues

OBJECTIVE = tiny.codec_objective()
START = tiny.start(OBJECTIVE)
CELLS = 16  # of an image


def test_loss_and_metrics_of_each_image():
    batch = tiny.images(0)
    part, rows = ImageExample(batch.image[4:7]), np.arange(4, 7)
    call = jax.jit(OBJECTIVE.sums)
    sums = call(START.params, START.model_state, part, rows, jax.random.key(0))

    config, variables = tiny.CODEC, {"params": START.params}
    mean, std = np.float32(config.mean), np.float32(config.std)
    totals = dict.fromkeys(("loss", "l2", "psnr", "commitment"), 0.0)
    hits, vector_sums, distances = np.zeros(32), np.zeros((32, 8)), 0.0
    for image in part.image:
        pixels = ((image / 255 - mean) / std).astype(np.float32)
        vectors = np.asarray(OBJECTIVE.codec.apply(variables, pixels[None], method="encode"))[0]
        codes = np.empty_like(vectors)
        for cell in np.ndindex(4, 4):
            squares = ((vectors[cell] - START.model_state.codes) ** 2).sum(axis=1)
            code = squares.argmin()
            codes[cell] = START.model_state.codes[code]
            hits[code], vector_sums[code] = hits[code] + 1, vector_sums[code] + vectors[cell]
            distances += squares[code]
        decoded = np.asarray(OBJECTIVE.codec.apply(variables, codes[None], method="decode"))[0]
        commitment = np.mean((vectors - codes) ** 2)
        totals["loss"] += np.mean((decoded - pixels) ** 2) + 0.25 * commitment
        l2 = np.mean(((decoded * std + mean) - image / 255) ** 2)
        totals["l2"] += l2
        totals["psnr"] += 10 * np.log10(1 / l2)
        totals["commitment"] += commitment

    assert sums.loss == pytest.approx(totals.pop("loss"), rel=2e-6)
    assert set(sums.metrics) == set(totals)
    for name, total in totals.items():
        assert sums.metrics[name] == pytest.approx((total, 3), rel=1e-5), name
    np.testing.assert_array_equal(sums.aux.assigned.hits, hits)
    np.testing.assert_allclose(sums.aux.assigned.sums, vector_sums, rtol=1e-5, atol=1e-5)
    assert sums.aux.assigned.error == pytest.approx(distances, rel=1e-5)
    assert OBJECTIVE.normalizer(part) == 3


def candidates(rows, error=0.0):
    """What the batch's `rows` offer: candidates [K, D] and which are worthwhile [K]."""
    part = ImageExample(tiny.images(0).image[rows])
    codebook = START.model_state._replace(error=jnp.float32(error))
    sums = jax.jit(OBJECTIVE.sums)(START.params, codebook, part, rows, jax.random.key(5))
    return tuple(map(np.asarray, sums.aux.candidates))


def test_candidates_are_vectors_of_the_batch_drawn_over_all_its_rows():
    found, worthwhile = candidates(np.arange(tiny.BATCH))
    image = tiny.images(0).image
    pixels = (image / 255 - np.float32(tiny.CODEC.mean)) / np.float32(tiny.CODEC.std)
    vectors = OBJECTIVE.codec.apply({"params": START.params}, pixels, method="encode")
    flat = np.asarray(vectors).reshape(-1, 8)
    places = [np.abs(flat - candidate).max(axis=1).argmin() for candidate in found]
    np.testing.assert_allclose(found, flat[places], atol=1e-5)
    assert len({place // CELLS for place in places}) > tiny.BATCH / 2
    assert worthwhile.all()

    distances = ((flat[places][:, None] - START.model_state.codes) ** 2).sum(axis=2).min(axis=1)
    middle = float(np.median(distances))
    np.testing.assert_array_equal(
        candidates(np.arange(tiny.BATCH), error=middle)[1], distances > middle
    )


def test_every_candidate_comes_from_one_part_of_the_batch():
    whole = candidates(np.arange(tiny.BATCH))
    parts = [candidates(np.arange(start, tiny.BATCH, 4)) for start in range(4)]
    assert all(0 < worthwhile.sum() < len(worthwhile) for _, worthwhile in parts)
    for ours, theirs in zip(map(sum, zip(*parts, strict=True)), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_metrics_of_the_codebook():
    """Of four codes two win the batch evenly, a third lives on from before, the fourth is dead."""
    codec = VQVAE(VQVAEConfig(image_size=8, downsampling=2, channels=8, codebook=4, code_width=2))
    objective = CodecObjective(
        codec, global_batch=1, codebook=CodebookTraining(decay=0.5, revive_below=0.1)
    )
    counts = jnp.array([8.0, 0.0, 8.0, 0.0])
    codebook = Codebook(jnp.zeros((4, 2)), counts, jnp.zeros((4, 2)), jnp.float32(1))
    hits = jnp.array([8.0, 8.0, 0.0, 0.0])
    aux = BatchVectors(
        Assignments(hits, jnp.ones((4, 2)), jnp.float32(32)),
        Candidates(jnp.full((4, 2), 7.0), jnp.ones(4)),
    )
    (_, after), metrics = objective.finish(ModelValues({}, codebook), aux)
    assert metrics["perplexity"] == pytest.approx(2)
    assert metrics["revived"] == 1
    np.testing.assert_array_equal(after.codes[3], [7.0, 7.0])
    # The moved code starts with twice the threshold, a fifth of the fair share of 4.
    np.testing.assert_allclose(after.counts, [8, 4, 4, 0.8])
    assert metrics["codebook_usage"] == 1
    assert after.error == 0.5 * 1 + 0.5 * 32 / 16


def test_flops_are_six_a_multiply_add():
    plain = VQVAEConfig(image_size=8, downsampling=2, channels=5, code_width=7)
    # Taps x channels in x channels out x cells.
    encoder = 16 * 3 * 5 * 16 + 5 * 7 * 16
    decoder = 16 * 7 * 5 * 16 + 5 * 3 * 64
    assert training_flops(plain) == 6 * (encoder + decoder)
    assert training_flops(plain, decoder_only=True) == 2 * encoder + 6 * decoder

    deep = VQVAEConfig(
        image_size=16, downsampling=4, channels=(5, 6), code_width=7, residual_blocks=2
    )
    encoder = 16 * 3 * 5 * 64 + 16 * 5 * 6 * 16 + 6 * 7 * 16
    blocks = 2 * (9 + 1) * 6 * 6 * 16
    decoder = 9 * 7 * 6 * 16 + 16 * 6 * 6 * 16 + 16 * 6 * 5 * 64 + 5 * 3 * 256
    assert training_flops(deep) == 6 * (encoder + decoder + 2 * blocks)
    only = 2 * (encoder + blocks) + 6 * (decoder + blocks)
    assert training_flops(deep, decoder_only=True) == only
