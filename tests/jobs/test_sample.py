"""Prompts from flags and files; what sampling refuses."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from cogview_jax import load
from cogview_jax.checkpoints.bundle import Bundle, write_bundle
from cogview_jax.data.transforms import center_crop
from cogview_jax.jobs.sample import (
    Draws,
    Reranking,
    caption,
    complete,
    read_prompts,
    rerank,
    super_resolution,
    text_to_image,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.filters import SamplingConfig


def test_prompts_of_the_flags_come_before_those_of_the_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("一个红色的圆形\n\n  two stars \n", encoding="utf-8")
    assert read_prompts(["first", "second"], str(file)) == [
        *("first", "second", "一个红色的圆形", "two stars")
    ]
    assert read_prompts(["only"], None) == ["only"]


def test_files_without_prompts_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    for given, file, message in (
        ([], None, "no prompt: give --prompt TEXT"),
        ([], "empty.txt", "no prompt: give --prompt TEXT"),
        ([], "latin.txt", "latin.txt cannot be read as UTF-8 text"),
        (["x"], "none.txt", "none.txt cannot be read as UTF-8 text"),
    ):
        with pytest.raises(InputError, match=message) as error:
            read_prompts(given, file and str(tmp_path / file))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("bundle", "prompts", "changes", "message"),
    [
        ("run", ["a star", " "], {}, "prompt ' ' holds no text"),
        ("run", ["a star"], {"batch_size": 0}, "batch_size 0: expected at least 1"),
        ("run", ["a star"], {"precision": "half"}, "precision 'half' is unknown; choose from"),
        ("codec", ["a star"], {}, "the bundle has no transformer and no text, which this needs"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    chain, tmp_path, bundle, prompts, changes, message
):
    folder = chain.run if bundle == "run" else chain.codec
    with pytest.raises(InputError, match=message):
        text_to_image(f"{folder}/bundle", f"{tmp_path}/out", prompts, Draws(**changes))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def pictures(tmp_path):
    """Two files, one of them larger than the codec's pictures and no square, and one broken."""
    generator = np.random.default_rng(0)
    for name, shape in (("a", (32, 32, 3)), ("b", (48, 40, 3))):
        pixels = generator.integers(0, 256, shape).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    return [str(tmp_path / f"{name}.png") for name in ("a", "b", "broken")]


def test_pictures_are_completed_into_a_folder(chain, tmp_path, pictures):
    draws, out = Draws(num_images=2, seed=5), tmp_path / "out"
    complete(f"{chain.run}/bundle", str(out), pictures[:2], ["a red circle"], None, draws)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    model = load(chain.run / "bundle")
    rows = model.codec.config.grid // 2
    assert [(line["image"], line["index"]) for line in lines] == [
        (file, index) for file in pictures[:2] for index in range(2)
    ]
    assert {(line["prompt"], line["seed"], line["keep_rows"]) for line in lines} == {
        ("a red circle", 5, rows)
    }
    for file, (start, stop) in zip(pictures, ((0, 2), (2, 4)), strict=False):
        square = center_crop(np.asarray(Image.open(file)), model.codec.config.image_size)
        expected = model.complete(square, rows, "a red circle", 2, 5)
        for line, picture in zip(lines[start:stop], expected, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(out / line["file"])), picture)
    assert (out / "grid.png").is_file()


@pytest.mark.parametrize(
    ("which", "prompts", "keep_rows", "message"),
    [
        ([], ["a star"], None, r"--task complete needs a picture: --image FILE \(repeatable\)"),
        ([0, 1], ["a"] * 3, None, "2 images and 3 prompts: expected one prompt for each, or one"),
        ([0, 2], ["a star"], None, "broken.png cannot be read"),
        ([0], ["a star"], 99, "keep_rows 99: expected 0 to"),
    ],
)
def test_what_cannot_be_completed_leaves_nothing(
    chain, tmp_path, pictures, which, prompts, keep_rows, message
):
    images, out = [pictures[i] for i in which], tmp_path / "out"
    with pytest.raises(InputError, match=message):
        complete(f"{chain.run}/bundle", str(out), images, prompts, keep_rows, Draws())
    assert not out.exists()


@pytest.fixture(scope="module")
def captioner(chain, tmp_path_factory):
    """The chain's weights, told to be a caption model's: it says nothing true, but says it."""
    base, path = Bundle(chain.run / "bundle"), tmp_path_factory.mktemp("captioner") / "bundle"
    part = base.transformer()
    layout = dataclasses.replace(part.layout, task="caption")
    part = dataclasses.replace(part, layout=layout)
    write_bundle(path, codec=base, text=base.text(), transformer=part)
    return str(path)


def lines_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_captions_are_written_in_the_order_of_the_pictures(captioner, tmp_path, pictures):
    out, files = tmp_path / "out", [pictures[1], pictures[0]]
    draws = Draws(seed=3, sampling=SamplingConfig(temperature=1.0))
    caption(captioner, str(out), files, draws)
    model = load(captioner)
    size = model.codec.config.image_size
    squares = [center_crop(np.asarray(Image.open(file)), size) for file in files]
    expected = model.caption(np.stack(squares), 3, sampling=draws.sampling)
    assert expected[0] != expected[1]
    assert lines_of(out / "captions.jsonl") == [
        {"image": file, "caption": text, "seed": 3}
        for file, text in zip(files, expected, strict=True)
    ]
    assert (out / "grid.png").is_file()


def test_pairs_are_scored_and_ranked_within_a_prompt(captioner, tmp_path, pictures):
    a, b, _ = pictures
    files, texts = [a, b, a, b], ["a red circle", "a red circle", "a blue star", "a red ring"]
    rerank(captioner, str(tmp_path / "out"), files, texts, Draws(batch_size=3))
    lines = lines_of(tmp_path / "out" / "scores.jsonl")
    assert [(line["image"], line["prompt"]) for line in lines] == list(
        zip(files, texts, strict=True)
    )
    model = load(captioner)
    size = model.codec.config.image_size
    squares = [center_crop(np.asarray(Image.open(file)), size) for file in files]
    for line, square in zip(lines, squares, strict=True):
        alone = model.score(square[None], [line["prompt"]])[0]
        assert line["score"] == pytest.approx(alone, abs=1e-6)
    better = int(lines[1]["score"] < lines[0]["score"])
    assert [line["rank"] for line in lines] == [1 + better, 2 - better, 1, 1]


def test_the_candidates_that_a_caption_model_finds_likeliest_stay(chain, captioner, tmp_path):
    prompts, draws = ["a red circle", "a blue star"], Draws(num_images=5, seed=2, batch_size=4)
    base, out = f"{chain.run}/bundle", tmp_path / "out"
    text_to_image(base, str(out), prompts, draws, Reranking(captioner, keep=2))
    drawn = load(base).generate(prompts, 5, 2)
    scorer = load(captioner)
    lines, scored = lines_of(out / "samples.jsonl"), lines_of(out / "scores.jsonl")
    assert [line["prompt"] for line in lines] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert [line["rank"] for line in scored] == [1, 2, 3, 4, 5] * 2
    for number, prompt in enumerate(prompts):
        scores = scorer.score(np.stack([np.asarray(x) for x in drawn[number]]), [prompt] * 5)
        order = np.argsort(scores).tolist()
        mine = lines[2 * number : 2 * number + 2]
        assert [line["index"] for line in mine] == order[:2]
        all_five = scored[5 * number : 5 * number + 5]
        assert [line["index"] for line in all_five] == order
        np.testing.assert_allclose([x["score"] for x in all_five], scores[order], atol=1e-5)
        assert [x["file"] for x in all_five] == [line["file"] for line in mine] + [None] * 3
        for line in mine:
            picture = np.asarray(Image.open(out / line["file"]))
            np.testing.assert_array_equal(picture, np.asarray(drawn[number][line["index"]]))
    assert len(list((out / "images").iterdir())) == 4


def test_bundles_of_the_wrong_task_and_bad_pairs_leave_nothing(
    chain, captioner, tmp_path, pictures
):
    base, out, a = f"{chain.run}/bundle", str(tmp_path / "out"), pictures[:1]
    several, guided = Draws(num_images=2), Draws(sampling=SamplingConfig(guidance=2.0))
    for call, message in (
        (lambda: caption(base, out, a, Draws()), "trained for text_to_image, this needs caption"),
        (
            lambda: caption(captioner, out, [], Draws()),
            "--task caption needs a picture: --image FILE",
        ),
        (lambda: caption(captioner, out, pictures, Draws()), "broken.png cannot be read"),
        (lambda: caption(captioner, out, a, several), "--num_images 2: --task caption writes one"),
        (lambda: caption(captioner, out, a, guided), "guidance 2.0: a caption has none"),
        (lambda: rerank(captioner, out, a, ["x"], guided), "guidance 2.0: a score has none"),
        (lambda: rerank(captioner, out, a, ["x"], several), "--num_images 2: --task rerank"),
        (lambda: rerank(captioner, out, [], ["x"], Draws()), "--task rerank needs a picture"),
        (lambda: rerank(base, out, a, ["x"], Draws()), "for text_to_image, this needs caption"),
        (lambda: rerank(captioner, out, a, ["x", "y"], Draws()), "1 images and 2 prompts"),
        (lambda: rerank(captioner, out, a, [" "], Draws()), "prompt ' ' holds no text"),
        (lambda: rerank(captioner, out, a, ["red " * 90], Draws()), "shorten it"),
        (lambda: Reranking(captioner, keep=0), "--keep 0: expected at least 1"),
        (
            lambda: text_to_image(base, out, ["x"], several, Reranking(captioner, keep=3)),
            "--keep 3 is more than --num_images 2",
        ),
        (
            lambda: text_to_image(base, out, ["x"], several, Reranking(base)),
            "was trained for text_to_image, this needs caption",
        ),
        (
            lambda: text_to_image(captioner, out, ["x"], Draws()),
            "was trained for caption, this needs text_to_image",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()
        assert not (tmp_path / "out").exists()


def test_pictures_are_enlarged_into_a_folder(chain, tmp_path, pictures):
    """The chain's weights, told to be those of a super-resolution of 2 x 2 codes to 4 x 4."""
    base, path, out = Bundle(chain.run / "bundle"), tmp_path / "bundle", tmp_path / "out"
    part = base.transformer()
    layout = dataclasses.replace(part.layout, task="super_resolution")
    part = dataclasses.replace(part, layout=layout)
    write_bundle(path, codec=base, text=base.text(), transformer=part)
    texts, draws = ["a red circle", "a blue star"], Draws(seed=4)
    super_resolution(str(path), str(out), pictures[:2], texts, draws)
    model, lines = load(path), lines_of(out / "samples.jsonl")
    squares = [center_crop(np.asarray(Image.open(file)), 8) for file in pictures[:2]]
    expected = model.super_resolve(np.stack(squares), texts, 4, sampling=draws.sampling)
    assert [(line["image"], line["prompt"], line["seed"]) for line in lines] == [
        (file, text, 4) for file, text in zip(pictures, texts, strict=False)
    ]
    for line, picture in zip(lines, expected, strict=True):
        assert picture.size == (16, 16)
        np.testing.assert_array_equal(np.asarray(Image.open(out / line["file"])), picture)
    for call, message in (
        (lambda: (str(path), pictures, texts[:1], draws), "broken.png cannot be read"),
        (lambda: (str(path), pictures[:1], [" "], draws), "prompt ' ' holds no text"),
        (lambda: (str(path), pictures[:1], texts[:1], draws, 16), "enlarges those of 8"),
        (lambda: (str(path), pictures[:1], texts[:1], Draws(num_images=2)), "--num_images 2"),
        (
            lambda: (f"{chain.run}/bundle", pictures[:1], texts[:1], draws),
            "trained for text_to_image, this needs super_resolution",
        ),
    ):
        bundle, *rest = call()
        with pytest.raises(InputError, match=message):
            super_resolution(bundle, str(tmp_path / "refused"), *rest)
        assert not (tmp_path / "refused").exists()
