"""Generation: whole images, completed ones, and an image row by row, against the slow reference."""

import dataclasses

import numpy as np
import pytest
from pipeline.small import (
    MODEL,
    OFFICIAL,
    PROMPTS,
    SAMPLING,
    VOCABULARY,
    next_logits,
    prompt_tokens,
)

import reference
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.generation import GREY
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.decode import prefill, sample_keys
from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions, SamplingSettings


def test_codes_are_those_of_the_reference_decoder(parts, model, codes):
    assert codes.shape == (3, 2, 4, 4)
    for prompt, rows in zip(PROMPTS, codes, strict=True):
        pieces = [VOCABULARY.text_start + piece for piece in parts["text"].encode(prompt)]
        commands = {name: VOCABULARY.command(name) for name in ("ROI1", "TINY", "BOI1")}
        tokens = [commands["ROI1"], *pieces, commands["TINY"], commands["BOI1"]]
        assert prompt_tokens(model, prompt).tolist() == tokens
        for index, row in enumerate(rows):
            (key,) = sample_keys(7, [prompt], [index])
            expected = reference.generate(
                parts["transformer"].params, MODEL, tokens, key, 16, (0, 30), SAMPLING
            )
            assert row.reshape(-1).tolist() == expected


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_image_does_not_depend_on_batches_company_or_order(model, codes, batch_size):
    def sample(prompts, count):
        return model.generate_codes(prompts, count, 7, sampling=SAMPLING, batch_size=batch_size)

    np.testing.assert_array_equal(sample(PROMPTS[::-1], 3)[:, :2], codes[::-1])
    np.testing.assert_array_equal(sample(PROMPTS[1:2], 1), codes[1:2, :1])


def test_images_of_other_seeds_prompts_and_indices_differ(model, codes):
    other = model.generate_codes(PROMPTS, 2, 8, sampling=SAMPLING, batch_size=4)
    images = np.concatenate([codes, other]).reshape(12, 16)
    assert len({image.tobytes() for image in images}) == 12


@pytest.mark.parametrize("keep_rows", [1, 3])
def test_a_completed_image_is_the_kept_codes_and_what_the_reference_samples(
    parts, model, keep_rows
):
    image = np.random.default_rng(5).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    done, prompt, kept = [], PROMPTS[1], model.encode(image[None])[0, :keep_rows].ravel()
    completed = model.complete(
        image, keep_rows, prompt, 3, seed=4, sampling=SAMPLING, batch_size=2, progress=done.append
    )
    assert done == [2, 1]
    tokens = [*prompt_tokens(model, prompt).tolist(), *kept.tolist()]
    for index, whole in enumerate(completed):
        (key,) = sample_keys(4, [prompt], [index])
        sampled = reference.generate(
            parts["transformer"].params, MODEL, tokens, key, 16 - len(kept), (0, 30), SAMPLING
        )
        codes = np.array([*kept, *sampled]).reshape(1, 4, 4)
        np.testing.assert_array_equal(np.asarray(whole), model.decode(codes)[0])


def test_completing_from_nothing_is_sampling(model):
    image = np.zeros((16, 16, 3), np.uint8)
    (completed,) = model.complete(image, 0, PROMPTS[0], seed=3, sampling=SAMPLING)
    ((sampled,),) = model.generate(PROMPTS[:1], seed=3, sampling=SAMPLING)
    np.testing.assert_array_equal(np.asarray(completed), np.asarray(sampled))


@pytest.mark.parametrize(
    ("image", "keep_rows", "changes", "message"),
    [
        (np.zeros((16, 16, 3), np.uint8), 4, {}, "keep_rows 4: expected 0 to 3"),
        (np.zeros((16, 16, 3), np.uint8), -1, {}, "keep_rows -1: expected 0 to 3"),
        (np.zeros((16, 8, 3), np.uint8), 2, {}, r"expected uint8 \[b, 16, 16, 3\]"),
        (
            np.zeros((16, 16, 3), np.uint8),
            2,
            {"num_images": 0},
            "num_images 0: expected at least 1",
        ),
    ],
)
def test_what_cannot_be_completed_is_refused(model, image, keep_rows, changes, message):
    with pytest.raises(InputError, match=message):
        model.complete(image, keep_rows, "a star", **changes)


def test_a_streamed_image_grows_by_rows_to_the_generated_one(model):
    images = [np.asarray(p) for p in model.stream(PROMPTS[2], 9, sampling=SAMPLING)]
    ((whole,),) = model.generate(PROMPTS[2:], seed=9, sampling=SAMPLING)
    assert len(images) == 4
    np.testing.assert_array_equal(images[-1], np.asarray(whole))
    for row, image in enumerate(images, 1):
        assert (image[4 * row :] == GREY).all()
        assert (image[: 4 * row] != GREY).any(axis=-1).mean() > 0.9
    with pytest.raises(InputError, match="holds no text"):
        next(model.stream(" "))


def test_generate_gives_the_decoded_images_and_reports_each_once(model, codes):
    done = []
    images = model.generate(
        PROMPTS, 2, seed=7, sampling=SAMPLING, batch_size=4, progress=done.append
    )
    assert done == [4, 2]
    for row, expected in zip(images, codes, strict=True):
        np.testing.assert_array_equal([np.asarray(p) for p in row], model.decode(expected))
        assert [(image.mode, image.size) for image in row] == [("RGB", (16, 16))] * 2


def test_a_prompt_that_is_too_long_is_cut_or_refused(parts, capsys):
    model, longest = CogView(**parts), "a red circle" * 20
    pieces = parts["text"].encode(longest)
    prompts = [parts["text"].decode(pieces[:count]) for count in (12, 13)]
    assert [len(parts["text"].encode(prompt)) for prompt in prompts] == [12, 13]
    rows = [prompt_tokens(model, prompt) for prompt in prompts]
    assert len(rows[0]) == 15
    np.testing.assert_array_equal(*rows)
    says = "has 13 tokens, but the text region holds 12"
    sampled = model.generate_codes([prompts[1], "a red circle"], 1, 7, sampling=SAMPLING)
    (key,) = sample_keys(7, [prompts[1]], [0])
    expected = reference.generate(
        parts["transformer"].params, MODEL, rows[0].tolist(), key, 16, (0, 30), SAMPLING
    )
    assert sampled[0].ravel().tolist() == expected
    assert capsys.readouterr().err.count(f"{says}: it is cut") == 1, "once, not with every call"
    model = CogView(**parts, long_prompts="refuse")
    with pytest.raises(InputError, match=f"{says}: shorten"):
        model.generate(["a red circle", prompts[1]])
    assert list(model.prompts.refused([*prompts, "a", ""])) == [prompts[1], ""]


def test_one_prompt_is_a_list_of_one(model):
    ((alone,),) = model.generate("a red circle", seed=2, sampling=SAMPLING)
    ((listed,),) = model.generate(["a red circle"], seed=2, sampling=SAMPLING)
    np.testing.assert_array_equal(np.asarray(alone), np.asarray(listed))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_weights_of_the_release_sample_the_same_image_in_any_company(parts, batch_size):
    """Their LayerNorm looks at whole tensors; of a batch, each row still looks at itself alone."""
    part = dataclasses.replace(parts["transformer"], config=OFFICIAL)
    model = CogView(**parts | {"transformer": part})
    sampled = model.generate_codes(PROMPTS, 2, 7, sampling=SAMPLING, batch_size=batch_size)
    for i, prompt in enumerate(PROMPTS):
        alone = model.generate_codes([prompt], 1, 7, sampling=SAMPLING, batch_size=1)
        np.testing.assert_array_equal(alone[0, 0], sampled[i, 0])


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_guidance_is_away_from_what_comes_without_the_text(model, guidance):
    """Greedily, against two whole passes a token; and each image is its own when sampled."""
    greedy = SamplingConfig(temperature=0.0, guidance=guidance)
    codes = model.generate_codes(PROMPTS, 1, 7, sampling=greedy, batch_size=2)
    bare = [VOCABULARY.command(name) for name in ("ROI1", "TINY", "BOI1")]
    for prompt, grid in zip(PROMPTS, codes[:, 0], strict=True):
        row = []
        for _ in range(16):
            with_text, without = (
                next_logits(model, [*start, *row])[: VOCABULARY.codes]
                for start in (prompt_tokens(model, prompt), bare)
            )
            row.append(int(np.argmax(without + guidance * (with_text - without))))
        assert grid.ravel().tolist() == row
    guided = dataclasses.replace(SAMPLING, guidance=guidance)
    several = model.generate_codes(PROMPTS, 2, 7, sampling=guided, batch_size=4)
    alone = model.generate_codes(PROMPTS[1:2], 2, 7, sampling=guided, batch_size=1)
    np.testing.assert_array_equal(several[1:2], alone)
    *_, last = model.stream(PROMPTS[1], 7, sampling=guided)
    np.testing.assert_array_equal(np.asarray(last), model.decode(alone[:, 0])[0])
    # Without a text all prompts are alike, and a prompt's own random key is what is left.
    assert (codes[0] == codes[1]).all() == (guidance == 0)


@pytest.mark.parametrize(
    ("dropped", "line"),
    [
        (0.0, "guidance 3.0: this model has learned with captions alone (drop_captions 0)"),
        (None, "guidance 3.0: nobody has recorded whether this model has learned without"),
        (0.1, ""),
    ],
)
def test_guidance_without_dropped_captions_is_said_once(parts, dropped, line, capsys):
    part = dataclasses.replace(parts["transformer"], drop_captions=dropped)
    model = CogView(**parts | {"transformer": part})
    model.generation.sample_codes([SamplingRequest(p, 1, 0, SAMPLING) for p in PROMPTS])
    assert capsys.readouterr().err == ""
    for _ in range(2):
        guided = SamplingConfig(guidance=3.0)
        model.generation.sample_codes([SamplingRequest(p, 1, 0, guided) for p in PROMPTS])
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == (1 if line else 0)


def test_what_the_bundle_recommends_is_taken_unless_the_caller_says(parts, model):
    advice = SamplingSettings(temperature=0.5, guidance=2.0)
    part = dataclasses.replace(parts["transformer"], sampling=advice)
    advised = CogView(**parts | {"transformer": part})
    assert model.default_sampling == SamplingConfig()
    assert advised.default_sampling == SamplingConfig(temperature=0.5, guidance=2.0)
    codes = advised.generate_codes(PROMPTS, 2, 7)
    asked = model.generate_codes(PROMPTS, 2, 7, sampling=SamplingConfig(0.5, guidance=2.0))
    np.testing.assert_array_equal(codes, asked)
    *_, last = advised.stream(PROMPTS[0], 7)
    np.testing.assert_array_equal(np.asarray(last), model.decode(codes[0, :1])[0])
    image = model.decode(codes[0, :1])[0]
    begun = advised.generation.complete(image, 1, PROMPTS[0], 2, SamplingOptions(3))
    sampling = SamplingOptions(3, SamplingConfig(0.5, guidance=2.0))
    again = model.generation.complete(image, 1, PROMPTS[0], 2, sampling)
    np.testing.assert_array_equal(begun, again)
    usual = advised.generate_codes(PROMPTS, 2, 7, sampling=SamplingConfig())
    np.testing.assert_array_equal(usual, model.generate_codes(PROMPTS, 2, 7))
    assert not np.array_equal(usual, codes)


def test_guidance_of_one_is_none(model, codes):
    guided = dataclasses.replace(SAMPLING, guidance=1.0)
    np.testing.assert_array_equal(
        model.generate_codes(PROMPTS, 2, 7, sampling=guided, batch_size=4), codes
    )
    with pytest.raises(InputError, match=r"guidance 2.0: a query has none, leave it at 1"):
        model.fill("[ROI1] red [MASK]", sampling=SamplingConfig(guidance=2.0))


def test_candidates_of_one_prompt_are_prefilled_once(model, monkeypatch):
    prefilled = []

    def counting(params, tokens, *rest, **settings):
        prefilled.append(len(tokens))
        return prefill(params, tokens, *rest, **settings)

    monkeypatch.setattr("cogview_jax.sampling.decode.prefill", counting)
    model.generate_codes(PROMPTS[:1], 4, 7, sampling=SAMPLING)
    assert prefilled == [1]
