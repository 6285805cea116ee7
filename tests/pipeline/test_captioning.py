"""Captions and CapLoss against whole passes over one row at a time."""

import dataclasses

import numpy as np
import pytest
from pipeline.small import (
    LAYOUT,
    MODEL,
    OFFICIAL,
    SAMPLING,
    VOCABULARY,
    next_logits,
)

import reference
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError


@pytest.mark.parametrize("config", [MODEL, OFFICIAL], ids=["own", "official"])
def test_scores_of_pairs_are_mean_cross_entropies(parts, config):
    """Each by itself: in a batch, and against whole passes over one row."""
    layout = dataclasses.replace(LAYOUT, task="caption")
    part = dataclasses.replace(parts["transformer"], config=config, layout=layout)
    model = CogView(**parts | {"transformer": part})
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    texts = ["a red circle", "a blue star", "red"]
    scores = model.score(images, texts)
    for image, text, score in zip(images, texts, scores, strict=True):
        assert model.score(image[None], [text])[0] == pytest.approx(score, rel=1e-6)
        codes, pieces = model.encode(image[None]).ravel(), parts["text"].encode(text)
        row = model.layout.tokens({"image": codes, "text": pieces})[:-1]  # the text's end: no part
        logits = model.logits(row[None, :-1])[0, -len(pieces) :, VOCABULARY.codes :]
        shares = [reference.softmax(line.astype(np.float64)) for line in logits]
        expected = -np.mean(np.log([s[p] for s, p in zip(shares, pieces, strict=True)]))
        assert score == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match="score got 3 images and 2 texts"):
        model.score(images, texts[:2])
    with pytest.raises(InputError, match="score got the text 'red': expected a list with one for"):
        model.score(images, "red")
    with pytest.raises(InputError, match="was trained for caption, this needs text_to_image"):
        model.generate(["a red circle"])


def test_a_bundle_of_another_task_neither_scores_nor_describes(model):
    image = np.zeros((1, 16, 16, 3), np.uint8)
    with pytest.raises(InputError, match="was trained for text_to_image, this needs caption"):
        model.score(image, ["a"])
    with pytest.raises(InputError, match="was trained for text_to_image, this needs caption"):
        model.caption(image)


@pytest.mark.parametrize("config", [MODEL, OFFICIAL], ids=["own", "official"])
def test_captions_are_those_of_whole_passes(parts, config):
    """Token by token with the whole sequence each time, up to the end or the region's."""
    layout = dataclasses.replace(LAYOUT, task="caption")
    part = dataclasses.replace(parts["transformer"], config=config, layout=layout)
    # Other weights of [PAD] let some texts end early and others never.
    words = np.array(part.params["word_embedding"])
    words[VOCABULARY.command("PAD")] *= 4
    part = dataclasses.replace(part, params=part.params | {"word_embedding": words})
    model = CogView(**parts | {"transformer": part})
    images = np.random.default_rng(3).integers(0, 256, (11, 16, 16, 3)).astype(np.uint8)
    done = []
    said = model.caption(images, batch_size=4, progress=done.append)
    assert sum(done) == 11
    lengths = set()
    for image, text in zip(images, said, strict=True):
        codes = model.encode(image[None]).ravel()
        row = model.layout.tokens({"image": codes}).tolist()
        start = len(row)
        while len(row) - start < LAYOUT.text_length:
            # With the release's LayerNorm later tokens do change earlier ones.
            official = model.parts.conventions.tensor_norm
            logits = model.logits(np.array([row]))[0, -1] if official else next_logits(model, row)
            allowed = logits[VOCABULARY.text_start : VOCABULARY.commands_start + 1]
            row.append(VOCABULARY.text_start + int(np.argmax(allowed)))
            if row[-1] == VOCABULARY.command("PAD"):
                row.pop()
                break
        lengths.add(len(row) - start)
        pieces = [i - VOCABULARY.text_start for i in row[start:]]
        pieces = [i for i in pieces if i < len(parts["text"])]
        assert text == parts["text"].decode(pieces)
    assert min(lengths) < LAYOUT.text_length == max(lengths)
    assert model.caption(images[:1], seed=9) == said[:1]


def test_sampled_captions_are_an_images_own(parts):
    layout = dataclasses.replace(LAYOUT, task="caption")
    part = dataclasses.replace(parts["transformer"], layout=layout)
    model = CogView(**parts | {"transformer": part})
    images = np.random.default_rng(3).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    said = model.caption(images, 4, sampling=SAMPLING)
    turned = model.caption(images[::-1], 4, sampling=SAMPLING, batch_size=2)
    assert turned == said[::-1]
    assert model.caption(images, 5, sampling=SAMPLING) != said
    with pytest.raises(InputError, match="caption got no image"):
        model.caption(images[:0])
    with pytest.raises(InputError, match="batch_size 0: expected at least 1"):
        model.caption(images, batch_size=0)
