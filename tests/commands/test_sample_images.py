"""Sampling into a folder: what is written, what is refused, and what a killed job leaves."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
from PIL import Image

import reference
from cogview_jax import load
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.commands.describe_images import caption, rerank
from cogview_jax.commands.resumable_output import ResumableOutput
from cogview_jax.commands.sample_images import (
    Reranking,
    Upsampling,
    complete,
    super_resolution,
    text_to_image,
)
from cogview_jax.commands.sample_inputs import JobOptions
from cogview_jax.commands.sample_outputs import held_output, write_lines
from cogview_jax.data.transforms import center_crop
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.pipeline.generation import Generation
from cogview_jax.pipeline.super_resolution import SuperResolution
from cogview_jax.runtime import lock
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions, SamplingSettings
from cogview_jax.shapes import scenes as shapes
from cogview_jax.tokenizers.layout import make_layout
from command_runs import retold

#: Which class samples by a method.
METHODS = {
    "sample_codes": Generation,
    "complete_codes": Generation,
    "upsample_codes": SuperResolution,
}


def job(num_images=1, precision="float32", long_prompts="cut", settings=None, **sampling):
    """The options of a job."""
    settings = SamplingSettings(**(settings or {}))
    return JobOptions(SamplingOptions(**sampling), num_images, precision, long_prompts, settings)


@pytest.mark.parametrize(
    ("bundle", "prompts", "changes", "message"),
    [
        ("run", ["a star", " "], {}, "prompt ' ' holds no text"),
        ("run", ["a star"], {"batch_size": 0}, "batch_size 0: expected at least 1"),
        ("run", ["a star"], {"precision": "half"}, "precision 'half' is unknown; choose from"),
        (
            *("codec", ["a star"], {}),
            "/codec/bundle has no transformer and no text, which this needs; it has codec$",
        ),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    chain, tmp_path, bundle, prompts, changes, message
):
    folder = chain.run if bundle == "run" else chain.codec
    with pytest.raises(InputError, match=message):
        text_to_image(f"{folder}/bundle", f"{tmp_path}/out", prompts, job(**changes))
    assert not (tmp_path / "out").exists()


def test_bad_prompts_of_a_file_are_left_out_and_the_others_drawn(chain, tmp_path, capsys):
    """The others keep their numbers, and are what they are without the bad ones."""
    prompts = ["a star", "red " * 1025, "a ring", "a\0b", "caf\udce9", "red " * 60]
    bundle, out = f"{chain.run}/bundle", tmp_path / "out"
    options = job(seed=5, long_prompts="refuse")
    assert text_to_image(bundle, str(out), prompts, options, needed=1) == 4
    said = capsys.readouterr().err
    for number, reason in (
        (2, "has 4100 characters, expected at most 4096"),
        (4, "holds a NUL character"),
        (5, "is no Unicode text"),
        (6, "but the text region holds 40: shorten it"),
    ):
        (line,) = [line for line in said.splitlines() if f"number {number} of 6" in line]
        assert line.startswith("left out")
        assert reason in line
    assert [(line["prompt"], line["file"]) for line in lines_of(out / "samples.jsonl")] == [
        ("a star", "images/00000_000.png"),
        ("a ring", "images/00002_000.png"),
    ]
    ((expected,),) = load(bundle).generate(["a ring"], seed=5)
    np.testing.assert_array_equal(
        np.asarray(Image.open(out / "images" / "00002_000.png")), np.asarray(expected)
    )
    with pytest.raises(InputError, match="has 4100 characters"):
        text_to_image(bundle, f"{tmp_path}/none", prompts, options, needed=2)
    with pytest.raises(InputError, match="has 4100 characters"):
        text_to_image(bundle, f"{tmp_path}/none", prompts[1:2], options, needed=0)
    with pytest.raises(InputError, match="number of images 3000000: expected at most 1000000"):
        text_to_image(bundle, f"{tmp_path}/none", ["a"] * 3, job(num_images=10**6))
    assert not (tmp_path / "none").exists()


@pytest.fixture
def image_files(tmp_path):
    """Two files, one of them larger than the codec's images and no square, and one broken."""
    generator = np.random.default_rng(0)
    for name, shape in (("a", (32, 32, 3)), ("b", (48, 40, 3))):
        pixels = generator.integers(0, 256, shape).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    return [str(tmp_path / f"{name}.png") for name in ("a", "b", "broken")]


def test_images_are_completed_into_a_folder(chain, tmp_path, image_files):
    options, out = job(num_images=2, seed=5), tmp_path / "out"
    complete(f"{chain.run}/bundle", str(out), image_files[:2], ["a red circle"], None, options)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    model = load(chain.run / "bundle")
    rows = model.codec.config.grid // 2
    assert [(line["image"], line["index"]) for line in lines] == [
        (file, index) for file in image_files[:2] for index in range(2)
    ]
    assert {(line["prompt"], line["seed"], line["keep_rows"]) for line in lines} == {
        ("a red circle", 5, rows)
    }
    for file, (start, stop) in zip(image_files, ((0, 2), (2, 4)), strict=False):
        square = center_crop(np.asarray(Image.open(file)), model.codec.config.image_size)
        expected = model.complete(square, rows, "a red circle", 2, 5)
        for line, image in zip(lines[start:stop], expected, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(out / line["file"])), image)
    assert (out / "grid.png").is_file()


@pytest.mark.parametrize(
    ("which", "prompts", "keep_rows", "message"),
    [
        ([], ["a star"], None, r"--task complete needs an image: --image FILE \(repeatable\)"),
        ([0, 1], ["a"] * 3, None, "2 images and 3 prompts: expected one prompt for each, or one"),
        ([0, 2], ["a star"], None, "broken.png cannot be read"),
        ([0], ["a star"], 99, "keep_rows 99: expected 0 to"),
    ],
)
def test_what_cannot_be_completed_leaves_nothing(
    chain, tmp_path, image_files, which, prompts, keep_rows, message
):
    images, out = [image_files[i] for i in which], tmp_path / "out"
    with pytest.raises(InputError, match=message):
        complete(f"{chain.run}/bundle", str(out), images, prompts, keep_rows, job())
    assert not out.exists()


@pytest.fixture(scope="module")
def captioner(chain, tmp_path_factory):
    return retold(chain, tmp_path_factory.mktemp("captioner") / "bundle", "caption")


def lines_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_captions_are_written_in_the_order_of_the_images(captioner, tmp_path, image_files):
    out, files = tmp_path / "out", [image_files[1], image_files[0]]
    options = job(seed=3, settings={"temperature": 1.0})
    caption(captioner, str(out), files, options)
    model = load(captioner)
    size = model.codec.config.image_size
    squares = [center_crop(np.asarray(Image.open(file)), size) for file in files]
    expected = model.caption(np.stack(squares), 3, sampling=SamplingConfig(temperature=1.0))
    assert expected[0] != expected[1]
    assert lines_of(out / "captions.jsonl") == [
        {"image": file, "caption": text, "seed": 3}
        for file, text in zip(files, expected, strict=True)
    ]
    assert (out / "grid.png").is_file()


def test_one_caption_is_one(captioner, tmp_path, image_files, capsys):
    caption(captioner, str(tmp_path), image_files[:1], job())
    assert f"1 caption in {tmp_path}/captions.jsonl" in capsys.readouterr().err


def test_pairs_are_scored_and_ranked_within_a_prompt(captioner, tmp_path, image_files):
    a, b, _ = image_files
    files, texts = [a, b, a, b], ["a red circle", "a red circle", "a blue star", "a red ring"]
    rerank(captioner, str(tmp_path / "out"), files, texts, job(batch_size=3))
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
    prompts, options = ["a red circle", "a blue star"], job(num_images=5, seed=2, batch_size=4)
    base, out = f"{chain.run}/bundle", tmp_path / "out"
    text_to_image(base, str(out), prompts, options, Reranking(captioner, keep=2))
    sampled = load(base).generate(prompts, 5, 2)
    scorer = load(captioner)
    lines, scored = lines_of(out / "samples.jsonl"), lines_of(out / "scores.jsonl")
    assert [line["prompt"] for line in lines] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert [line["rank"] for line in scored] == [1, 2, 3, 4, 5] * 2
    for number, prompt in enumerate(prompts):
        scores = scorer.score(np.stack([np.asarray(x) for x in sampled[number]]), [prompt] * 5)
        order = np.argsort(scores).tolist()
        mine = lines[2 * number : 2 * number + 2]
        assert [line["index"] for line in mine] == order[:2]
        all_five = scored[5 * number : 5 * number + 5]
        assert [line["index"] for line in all_five] == order
        np.testing.assert_allclose([x["score"] for x in all_five], scores[order], atol=1e-5)
        assert [x["file"] for x in all_five] == [line["file"] for line in mine] + [None] * 3
        for line in mine:
            image = np.asarray(Image.open(out / line["file"]))
            np.testing.assert_array_equal(image, np.asarray(sampled[number][line["index"]]))
    assert len(list((out / "images").iterdir())) == 4


def test_flags_change_what_a_bundle_recommends_one_by_one(chain, tmp_path, capsys):
    base = Bundle(chain.run / "bundle")
    advice = SamplingSettings(temperature=0.5, top_k=3)
    part = dataclasses.replace(base.transformer(), sampling=advice)
    write_bundle(tmp_path / "advised", codec=base, text=base, transformer=part)
    model = load(chain.run / "bundle")
    for given, config in (
        ({}, SamplingConfig(0.5, top_k=3)),
        ({"top_k": 200}, SamplingConfig(0.5, top_k=200)),
        ({"temperature": 0.0}, SamplingConfig(0.0, top_k=3)),
    ):
        out = tmp_path / str(config.temperature) / str(config.top_k)
        text_to_image(str(tmp_path / "advised"), str(out), ["a star"], job(settings=given))
        (expected,) = model.generate(["a star"], sampling=config)[0]
        np.testing.assert_array_equal(Image.open(out / "images" / "00000_000.png"), expected)
        line = f"sampling with temperature {config.temperature:g}, top_k {config.top_k}, top_p 1"
        assert line in capsys.readouterr().err


def test_bundles_of_the_wrong_task_and_bad_pairs_leave_nothing(
    chain, captioner, tmp_path, image_files
):
    base, out, a = f"{chain.run}/bundle", str(tmp_path / "out"), image_files[:1]
    several, guided = job(num_images=2), job(settings={"guidance": 2.0})
    for call, message in (
        (lambda: caption(base, out, a, job()), "trained for text_to_image, this needs caption"),
        (
            lambda: caption(captioner, out, [], job()),
            "--task caption needs an image: --image FILE",
        ),
        (lambda: caption(captioner, out, image_files, job()), "broken.png cannot be read"),
        (lambda: caption(captioner, out, a, several), "--num_images 2: --task caption writes one"),
        (lambda: caption(captioner, out, a, guided), "guidance 2.0: a caption has none"),
        (lambda: rerank(captioner, out, a, ["x"], guided), "guidance 2.0: a score has none"),
        (lambda: rerank(captioner, out, a, ["x"], several), "--num_images 2: --task rerank"),
        (lambda: rerank(captioner, out, [], ["x"], job()), "--task rerank needs an image"),
        (lambda: rerank(base, out, a, ["x"], job()), "for text_to_image, this needs caption"),
        (lambda: rerank(captioner, out, a, ["x", "y"], job()), "1 image and 2 prompts"),
        (lambda: rerank(captioner, out, a, [" "], job()), "prompt ' ' holds no text"),
        (
            lambda: rerank(captioner, out, a, ["red " * 90], job(long_prompts="refuse")),
            "shorten it",
        ),
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
            lambda: text_to_image(captioner, out, ["x"], job()),
            "was trained for caption, this needs text_to_image",
        ),
    ):
        with pytest.raises(InputError, match=message):
            call()
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def upsampler(chain, tmp_path_factory):
    """A random transformer for super-resolution of the chain's 16 pixels to 32."""
    return upsampling_bundle(chain, tmp_path_factory.mktemp("upsampler") / "bundle")


def upsampling_bundle(chain, path, **changes):
    base = Bundle(chain.run / "bundle")
    part = base.transformer()
    layout = dataclasses.replace(part.layout, task="super_resolution", grid=8, **changes)
    positions = make_layout(layout, part.vocabulary).positions
    model = Transformer(part.config, part.vocabulary.size, positions)
    params = reference.random_like(unbox(transformer_shapes(model)), 3)
    part = dataclasses.replace(part, layout=layout, params=params)
    write_bundle(path, codec=base, text=base.text(), transformer=part)
    return str(path)


def test_three_bundles_in_one_command_do_what_they_do_one_after_the_other(
    chain, captioner, upsampler, tmp_path
):
    prompts, options = ["a red circle", "a blue star"], job(num_images=3, seed=2)
    base, best = f"{chain.run}/bundle", Reranking(captioner, keep=1)
    text_to_image(
        base, str(tmp_path / "chain"), prompts, options, best, upsampler, Upsampling(3, 2)
    )
    text_to_image(base, str(tmp_path / "small"), prompts, options, best)
    small = lines_of(tmp_path / "small" / "samples.jsonl")
    files = [str(tmp_path / "small" / line["file"]) for line in small]
    once = job(seed=2)
    super_resolution(
        upsampler, str(tmp_path / "large"), files, prompts, once, upsampling=Upsampling(3, 2)
    )
    large = lines_of(tmp_path / "large" / "samples.jsonl")
    lines = lines_of(tmp_path / "chain" / "samples.jsonl")
    assert [line["prompt"] for line in lines] == prompts
    for line, before, after in zip(lines, small, large, strict=True):
        assert line == before | {"small": f"small/{before['file'].removeprefix('images/')}"}
        for file, expected in (
            (line["small"], tmp_path / "small" / before["file"]),
            (line["file"], tmp_path / "large" / after["file"]),
        ):
            image = (tmp_path / "chain" / file).read_bytes()
            assert image == expected.read_bytes()
        assert Image.open(tmp_path / "chain" / line["file"]).size == (32, 32)
    assert lines_of(tmp_path / "chain" / "scores.jsonl") == lines_of(
        tmp_path / "small" / "scores.jsonl"
    )
    assert {path.name for path in (tmp_path / "chain").iterdir()} == {
        *("images", "small", "samples.jsonl", "scores.jsonl", "grid.png")
    }


def test_an_upsampler_that_reads_no_text_needs_none(chain, upsampler, tmp_path):
    _, drawing = shapes.drawing(0, "train", 3, 16)
    Image.fromarray(drawing).save(tmp_path / "a.png")
    files, options = [str(tmp_path / "a.png")], job(settings={"temperature": 0.0})
    blind = upsampling_bundle(chain, tmp_path / "blind", text_length=0)
    for out, prompts in (("bare", []), ("told", ["a red circle " * 40])):
        super_resolution(blind, str(tmp_path / out), files, prompts, options)
    bare, told = (lines_of(tmp_path / out / "samples.jsonl")[0] for out in ("bare", "told"))
    assert (bare["prompt"], told["prompt"]) == ("", "a red circle " * 40)
    images = [(tmp_path / out / bare["file"]).read_bytes() for out in ("bare", "told")]
    assert images[0] == images[1]
    (image,) = load(blind).super_resolve(drawing[None], sampling=SamplingConfig(temperature=0))
    np.testing.assert_array_equal(Image.open(tmp_path / "bare" / bare["file"]), image)
    with pytest.raises(InputError, match=r"no prompt: the model of .+ has learned with texts"):
        super_resolution(upsampler, str(tmp_path / "refused"), files, [], options)
    with pytest.raises(InputError, match="super_resolve got 1 image and 0 texts"):
        load(upsampler).super_resolve(drawing[None])


def test_an_upsampler_that_does_not_fit_is_refused_at_once(chain, upsampler, tmp_path):
    base, out = f"{chain.run}/bundle", tmp_path / "out"
    tiny = retold(chain, tmp_path / "tiny", "super_resolution")
    for bundle, prompt, message in (
        (tiny, "a star", f"{tiny}: images of 16 pixels: the bundle upsamples those of 8"),
        (base, "a star", "trained for text_to_image, this needs super_resolution"),
        (upsampler, " ", "holds no text"),
    ):
        with pytest.raises(InputError, match=message):
            text_to_image(base, str(out), [prompt], job(), None, bundle)
        assert not out.exists()


@pytest.mark.parametrize("flag", ["rerank_with", "upsample_with"])
def test_another_bundle_that_is_wrong_is_found_before_any_is_read(
    chain, tmp_path, monkeypatch, flag
):
    def read(*_):
        raise AssertionError("a bundle is read")

    monkeypatch.setattr(JobOptions, "load", read)
    base, out = f"{chain.run}/bundle", str(tmp_path / "out")
    more = (Reranking(base), None) if flag == "rerank_with" else (None, base)
    with pytest.raises(InputError, match="was trained for text_to_image, this needs"):
        text_to_image(base, out, ["a star"], job(), *more)


class Stopped(Exception):
    """The end of a job that somebody interrupts."""


def stopped(monkeypatch, method, after, call):
    """Runs `call` until a batch too many is asked of `method`; then it is interrupted."""
    whole = getattr(METHODS[method], method)

    def breaks(*args, **kwargs):
        yield from itertools.islice(whole(*args, **kwargs), after)
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(METHODS[method], method, breaks)
        call()


def counted(monkeypatch, method):
    """How many images `method` samples from here on, a number a call."""
    whole, counts = getattr(METHODS[method], method), []

    def counting(*args, **kwargs):
        batches = list(whole(*args, **kwargs))
        counts.append(sum(map(len, batches)))
        return iter(batches)

    monkeypatch.setattr(METHODS[method], method, counting)
    return counts


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("task", ["text_to_image", "complete", "super_resolution"])
def test_an_interrupted_job_goes_on_with_the_missing_images(
    chain, captioner, upsampler, tmp_path, image_files, monkeypatch, capsys, task
):
    base, files = f"{chain.run}/bundle", [image_files[i] for i in (0, 1, 0)]
    prompts, options = ["a red circle", "a star", "two rings"], job(num_images=3, batch_size=4)
    method, count, run = {
        "text_to_image": (
            "sample_codes",
            9,
            lambda out: text_to_image(base, out, prompts, options, Reranking(captioner, 2)),
        ),
        "complete": (
            "complete_codes",
            9,
            lambda out: complete(base, out, files, prompts, 2, options),
        ),
        "super_resolution": (
            "upsample_codes",
            3,
            lambda out: super_resolution(
                upsampler, out, files, prompts, job(batch_size=4), upsampling=Upsampling(2)
            ),
        ),
    }[task]
    run(str(tmp_path / "whole"))
    out = tmp_path / "out"
    text_to_image(base, str(out), ["before"], job(seed=9), Reranking(captioner))
    before = contents(out)
    stopped(monkeypatch, method, 1, lambda: run(str(out)))
    after = contents(out)
    assert before.items() <= after.items()
    first = len([name for name in after if name.startswith("unfinished/") and "png" in name])
    assert 1 <= first < count
    # One that was cut off, as by a failing power supply, is sampled again.
    damaged = next(out.glob("unfinished/*.png"))
    damaged.write_bytes(damaged.read_bytes()[:60])
    sampled = counted(monkeypatch, method)
    capsys.readouterr()
    run(str(out))
    assert sampled == [count - first + 1]
    said = capsys.readouterr().err
    assert f"unfinished has {first - 1} of {count} images: going on" in said
    whole, left = contents(tmp_path / "whole"), contents(out)
    assert whole.items() <= left.items()
    assert left.keys() - whole.keys() <= {"images/00000_000.png"}


def test_a_chain_that_was_interrupted_while_enlarging_keeps_its_candidates(
    chain, captioner, upsampler, tmp_path, monkeypatch
):
    base, prompts = f"{chain.run}/bundle", ["a red circle", "a star", "two rings"]
    options, best = job(num_images=2, batch_size=4), Reranking(captioner, 1)

    def run(out):
        text_to_image(base, str(tmp_path / out), prompts, options, best, upsampler, Upsampling(2))

    run("whole")
    stopped(monkeypatch, "upsample_codes", 1, lambda: run("out"))
    sampled, larger = counted(monkeypatch, "sample_codes"), counted(monkeypatch, "upsample_codes")
    run("out")
    assert (sampled, larger) == ([], [1])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_another_job_left_unfinished_is_not_taken_over(chain, tmp_path, monkeypatch, capsys):
    base, out, prompts = f"{chain.run}/bundle", tmp_path / "out", ["a red circle", "a star"]
    once = job(batch_size=1)
    stopped(monkeypatch, "sample_codes", 1, lambda: text_to_image(base, str(out), prompts, once))
    sampled = counted(monkeypatch, "sample_codes")
    other = job(batch_size=1, seed=1)
    text_to_image(base, str(out), prompts, other)
    assert sampled == [2]
    assert "images of another job (of another seed): they are sampled anew" in (
        capsys.readouterr().err
    )
    text_to_image(base, str(tmp_path / "alone"), prompts, other)
    assert contents(out) == contents(tmp_path / "alone")


def test_a_file_in_the_place_of_the_folder_is_refused(chain, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out is a file, expected a folder"):
        text_to_image(f"{chain.run}/bundle", str(tmp_path / "out"), ["a star"], job())
    assert (tmp_path / "out").read_text() == "mine"


def test_one_job_at_a_time_draws_into_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.0)
    red, blue = (np.full((4, 4, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    folder = tmp_path / "out" / "unfinished"
    with held_output(str(tmp_path / "out")):
        with pytest.raises(InputError, match="in use"), held_output(str(tmp_path / "out")):
            pass
        one = ResumableOutput(folder, {"prompts": ["red"]})
        one.add("0", red)
        with pytest.raises(InputError, match="unfinished is in use by process"):
            ResumableOutput(folder, {"prompts": ["blue"]})
        one.add("1", red)
        one.remove()
        two = ResumableOutput(folder, {"prompts": ["blue"]})
        two.add("0", blue)
        np.testing.assert_array_equal(two.read("0"), blue)
        assert two.missing(["0", "1"]) == [1]
        two.remove()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["samples.jsonl", "grid.png"])
def test_a_folder_in_the_place_of_a_file_is_found_before_any_work(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"{name} is a folder"), held_output(str(tmp_path)):
        raise AssertionError("the work began")


def test_a_file_in_the_place_of_the_images_is_found_before_any_work(tmp_path):
    (tmp_path / "images").write_text("mine")
    with pytest.raises(InputError, match="images is a file"), held_output(str(tmp_path)):
        raise AssertionError("the work began")


def test_a_folder_of_something_else_is_left_alone(chain, tmp_path):
    mine = tmp_path / "out" / "unfinished" / "novel.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"unfinished has no job\.json, so it is no unfinished"):
        text_to_image(f"{chain.run}/bundle", str(tmp_path / "out"), ["a star"], job())
    assert mine.read_text() == "mine"


def test_a_job_that_cannot_be_read_is_drawn_anew(chain, tmp_path, monkeypatch, capsys):
    base, out = f"{chain.run}/bundle", tmp_path / "out"
    options = job(num_images=2, batch_size=1)
    stopped(
        monkeypatch, "sample_codes", 1, lambda: text_to_image(base, str(out), ["a star"], options)
    )
    (out / "unfinished" / "job.json").write_text("{")
    sampled = counted(monkeypatch, "sample_codes")
    text_to_image(base, str(out), ["a star"], options)
    assert sampled == [2]
    assert "of another job.json, which cannot be read" in capsys.readouterr().err


def test_scores_of_an_earlier_job_do_not_stay_beside_images_without(chain, captioner, tmp_path):
    base, out = f"{chain.run}/bundle", tmp_path / "out"
    text_to_image(base, str(out), ["a star"], job(), Reranking(captioner))
    assert (out / "scores.jsonl").is_file()
    text_to_image(base, str(out), ["a star"], job())
    assert not (out / "scores.jsonl").exists()


@pytest.mark.parametrize("name", ["images/00000_000.png", "small/7_1.png", "grid.png"])
def test_files_that_no_job_wrote_are_not_replaced(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with (
        pytest.raises(InputError, match=f"holds {name}, which no sampling job wrote"),
        held_output(str(tmp_path)),
    ):
        raise AssertionError
    assert (tmp_path / name).read_text() == "mine"
    # An interrupted job had not listed its images yet.
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "job.json").write_text("{}")
    with held_output(str(tmp_path)):
        pass


@pytest.mark.parametrize("sign", ["\u2028", "\x85"])
def test_images_of_a_job_are_its_own_whatever_its_prompts_hold(tmp_path, sign):
    lines = [{"prompt": f"a red{sign}star", "file": "images/00000_000.png"}]
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "00000_000.png").write_bytes(b"ours")
    write_lines(tmp_path / "samples.jsonl", lines)
    with held_output(str(tmp_path)):
        pass


def test_images_of_an_earlier_job_do_not_stay_and_other_files_do(chain, tmp_path):
    base, out = f"{chain.run}/bundle", tmp_path / "out"
    text_to_image(base, str(out), ["a star"], job(num_images=3))
    (out / "images" / "00000_007.png").write_bytes(b"mine")
    with (out / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"file": "../mine.png"}) + "\n")
    (tmp_path / "mine.png").write_bytes(b"mine")
    text_to_image(base, str(out), ["a circle"], job())
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names == ["00000_000.png", "00000_007.png"]
    assert (tmp_path / "mine.png").exists()


def test_images_are_enlarged_into_a_folder(chain, tmp_path, image_files):
    """The chain's weights, told to be those of a super-resolution of 2 x 2 codes to 4 x 4."""
    path, out = tmp_path / "bundle", tmp_path / "out"
    retold(chain, path, "super_resolution")
    texts, options = ["a red circle", "a blue star"], job(seed=4)
    super_resolution(
        str(path), str(out), image_files[:2], texts, options, upsampling=Upsampling(2, 1)
    )
    model, lines = load(path), lines_of(out / "samples.jsonl")
    squares = [center_crop(np.asarray(Image.open(file)), 8) for file in image_files[:2]]
    kept = {"window_candidates": 2, "back_projection": 1}
    expected = model.super_resolve(np.stack(squares), texts, 4, **kept)
    assert [(line["image"], line["prompt"], line["seed"]) for line in lines] == [
        (file, text, 4) for file, text in zip(image_files, texts, strict=False)
    ]
    for line, image in zip(lines, expected, strict=True):
        assert image.size == (16, 16)
        np.testing.assert_array_equal(np.asarray(Image.open(out / line["file"])), image)
    for call, message in (
        (lambda: (str(path), image_files, texts[:1], options), "broken.png cannot be read"),
        (lambda: (str(path), image_files[:1], [" "], options), "prompt ' ' holds no text"),
        (lambda: (str(path), image_files[:1], texts[:1], options, 16), "upsamples those of 8"),
        (lambda: (str(path), image_files[:1], texts[:1], job(num_images=2)), "--num_images 2"),
        (
            lambda: (f"{chain.run}/bundle", image_files[:1], texts[:1], options),
            "trained for text_to_image, this needs super_resolution",
        ),
    ):
        bundle, *rest = call()
        with pytest.raises(InputError, match=message):
            super_resolution(bundle, str(tmp_path / "refused"), *rest)
        assert not (tmp_path / "refused").exists()
