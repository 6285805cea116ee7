"""Evaluation of each task, and what it refuses; test_commands.py runs the command."""

import io
import json

import numpy as np
import pytest
import sentencepiece

from cogview_jax import load
from cogview_jax.evaluation.benchmark import Options
from cogview_jax.evaluation.benchmarks import shapes
from cogview_jax.evaluation.report import evaluate
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.options import SamplingConfig, SamplingSettings
from cogview_jax.shapes.fresh import fresh_scenes
from cogview_jax.tokenizers.text import TextTokenizer
from command_runs import retold


@pytest.fixture(scope="module")
def captioner(chain, tmp_path_factory):
    return retold(chain, tmp_path_factory.mktemp("captioner") / "bundle", "caption")


def evaluated(bundle, tmp_path, **options):
    """The report of a bundle, without what it says of itself, and its settings."""
    evaluate(shapes, bundle, str(tmp_path / "report.json"), Options(**options))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report.pop("benchmark") == "shapes"
    return report.pop("task"), report.pop("settings"), report


def test_captions_are_judged_of_a_caption_bundle(captioner, tmp_path):
    task, settings, report = evaluated(captioner, tmp_path, count=6, seed=3)
    model = load(captioner)
    assert (task, settings["temperature"]) == ("caption", 0.0)
    assert report == shapes.caption_report(model.caption, size=16, count=6, seed=3)


def test_upsampled_drawings_are_measured_of_a_bundle_of_super_resolution(chain, tmp_path):
    bundle = retold(chain, tmp_path / "bundle", "super_resolution")
    task, settings, report = evaluated(
        bundle, tmp_path, count=3, batch_size=2, settings=SamplingSettings(temperature=0.5)
    )
    model = load(bundle)
    sampling = SamplingConfig(0.5)

    def upsample(images, texts):
        larger = model.super_resolve(images, texts, sampling=sampling, back_projection=0)
        return np.stack(list(map(np.asarray, larger)))

    def reconstruct(images):
        return model.decode(model.encode(images, images.shape[1] // 4))

    assert (task, settings["temperature"]) == ("super_resolution", 0.5)
    _, by_default, _ = evaluated(bundle, tmp_path, count=2)
    assert by_default["temperature"] == 0.7
    expected = shapes.super_resolution_report(upsample, reconstruct, size=8, count=3, seed=0)
    assert report == expected


def test_the_best_of_candidates_is_that_of_the_caption_bundle(chain, captioner, tmp_path):
    base = f"{chain.run}/bundle"
    task, settings, report = evaluated(
        base, tmp_path, count=2, seed=1, rerank_with=captioner, candidates=4
    )
    model, scorer = load(base), load(captioner)
    assert (task, settings["temperature"]) == ("text_to_image", 1.0)
    assert {"bundle", "rerank_with"} < settings.keys()

    def generate(texts):
        return np.stack(
            [[np.asarray(image) for image in row] for row in model.generate(texts, 4, 1)]
        )

    expected = shapes.generation_report(
        generate,
        lambda images: model.decode(model.encode(images)),
        size=16,
        count=2,
        seed=1,
        score=scorer.score,
    )
    assert report == expected
    assert "best_of_4" in report["seen"]


@pytest.mark.parametrize(
    ("bundle", "options", "message"),
    [
        ("run", {"count": 1}, "--num_prompts 1: expected at least 2"),
        (
            "run",
            {"count": 12_501, "rerank_with": "captioner"},
            "--num_prompts 12501: expected at most 12500",
        ),
        ("codec", {"count": 4}, "needs a transformer and a codec to be evaluated"),
        ("run", {"rerank_with": "run"}, "was trained for text_to_image, this needs caption"),
        ("captioner", {"rerank_with": "captioner"}, "is for a bundle of text_to_image, not of"),
    ],
)
def test_mistakes_leave_no_report(chain, captioner, tmp_path, bundle, options, message):
    bundles = {
        "run": f"{chain.run}/bundle",
        "codec": f"{chain.codec}/bundle",
        "captioner": captioner,
    }
    out = tmp_path / "report.json"
    if "rerank_with" in options:
        options = {"count": 2, **options, "candidates": 8}
        options["rerank_with"] = bundles[options["rerank_with"]]
    with pytest.raises(InputError, match=message):
        evaluate(shapes, bundles[bundle], str(out), Options(batch_size=4, **options))
    assert not out.exists()


def test_a_report_never_takes_the_place_of_a_folder(tmp_path):
    """Found before anything is loaded: there is no bundle here."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "weights").write_text("weeks")
    with pytest.raises(InputError, match=r"--out .*run is a folder: expected the name of a file"):
        evaluate(shapes, "nowhere", str(tmp_path / "run"), Options(count=2))
    assert (tmp_path / "run" / "checkpoints" / "weights").read_text() == "weeks"


def test_a_bundle_that_has_not_learned_shapes_is_told(chain, tmp_path, capsys, monkeypatch):
    """This codec has trained for 12 steps; one that gives drawings back could be judged."""
    bundle, told = f"{chain.run}/bundle", "has not learned captioned shapes: of 16 true drawings"
    evaluate(shapes, bundle, str(tmp_path / "report.json"), Options(count=2))
    said = capsys.readouterr().err
    assert said.count(told) == 1
    assert "its codec (16 pixels, 16 codes) leaves none" in said
    model = load(bundle)
    shapes.warn_if_unlearned(model)
    assert told in capsys.readouterr().err
    perfect = np.concatenate([fresh.drawings(16) for fresh in fresh_scenes(8, 0)])
    monkeypatch.setattr(model, "decode", lambda codes: perfect)
    shapes.warn_if_unlearned(model)
    assert capsys.readouterr().err == ""
    # A tokenizer without bytes that has seen one language alone.
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a red circle"] * 9),
        model_writer=proto,
        vocab_size=14,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    model.text = TextTokenizer(proto.getvalue())
    shapes.warn_if_unlearned(model)
    assert "its text tokenizer has no pieces for such captions as" in capsys.readouterr().err
