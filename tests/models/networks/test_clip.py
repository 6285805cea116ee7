"""CLIP's towers and pixels against CLIPModel and CLIPImageProcessor of transformers."""

import numpy as np
import pytest

import clip_folder
from cogview_jax.interop.clip import read_clip
from cogview_jax.models.networks.clip import (
    MEAN,
    STD,
    clip_pixels,
    image_embeddings,
    normalise,
    text_embeddings,
)
from cogview_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def weights(oracles, tmp_path_factory):
    """Model "a" (quick_gelu, patches of 8, the largest id ends a text) and "b" (gelu, of 5)."""
    folder = tmp_path_factory.mktemp("clip")
    return {m: read_clip(clip_folder.write_folder(folder / m, oracles, m)) for m in "ab"}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def close(found, expected):
    assert found.dtype == np.float32
    np.testing.assert_allclose(normalise(found), unit(expected), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)


def test_the_rule_gives_the_weights_of_the_oracles(oracles):
    facts = clip_folder.read_facts(oracles)
    for model, sums in facts["checksums"].items():
        state = clip_folder.state_of(facts, model)
        for name, expected in sums.items():
            assert np.sum(state[name].astype(np.float64)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("model", ["a", "b"])
def test_image_embeddings(oracles, weights, model):
    expected = np.load(oracles(f"clip/{model}.npz"))
    images = expected["pixel_values"].transpose(0, 2, 3, 1)
    close(image_embeddings(weights[model], images), expected["image_embeds"])


@pytest.mark.parametrize("model", ["a", "b"])
def test_text_embeddings(oracles, weights, model):
    expected = np.load(oracles(f"clip/{model}.npz"))
    close(text_embeddings(weights[model], expected["ids"]), expected["text_embeds"])


@pytest.mark.parametrize("model", ["a", "b"])
def test_what_stands_behind_the_end_token_does_not_count(oracles, weights, model):
    expected, end = np.load(oracles(f"clip/{model}.npz")), {"a": 933, "b": 17}[model]
    ids = np.array(expected["ids"])
    for row in ids:
        row[np.argmax(row == end) + 1 :] = 3
    close(text_embeddings(weights[model], ids), expected["text_embeds"])
    ids[:, 1] = 5  # but what stands before it does
    found = normalise(text_embeddings(weights[model], ids))
    assert np.abs(found - unit(expected["text_embeds"])).max() > 0.05


def test_texts_shorter_than_the_longest(oracles, weights):
    expected = np.load(oracles("clip/b.npz"))
    short = text_embeddings(weights["b"], expected["ids"][:2, :9])
    close(short, expected["text_embeds"][:2])


def test_pixels_equal_those_of_the_image_processor(oracles):
    expected = np.load(oracles("clip/a.npz"))
    for i, pixels in enumerate(expected["pixel_values"].transpose(0, 2, 3, 1)):
        np.testing.assert_array_equal(clip_pixels(expected[f"image{i}"], 32), pixels, strict=True)


def test_pixels_of_a_constant_image_by_hand():
    image = np.broadcast_to(np.uint8([255, 0, 51]), (9, 20, 3))
    expected = (np.array([1, 0, 0.2]) - MEAN) / STD
    found = clip_pixels(image, 4)
    np.testing.assert_allclose(found, np.broadcast_to(expected, (4, 4, 3)), atol=1e-6)


def test_inputs_that_do_not_fit(weights):
    with pytest.raises(InputError, match=r"shape \[24, 24, 3\]: this CLIP reads \[23, 23, 3\]"):
        image_embeddings(weights["b"], np.zeros((1, 24, 24, 3), np.float32))
    with pytest.raises(InputError, match="texts of 21 tokens: this CLIP reads at most 20"):
        text_embeddings(weights["b"], np.zeros((1, 21), np.int32))
