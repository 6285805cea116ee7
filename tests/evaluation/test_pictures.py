"""A model measured on one's own captioned images, on the bundles of the chain."""

import json

import numpy as np
import pytest
from PIL import Image

from cogview_jax import load
from cogview_jax.evaluation.benchmark import ImageOptions, Options, load_benchmark
from cogview_jax.evaluation.captioned_sets import drawn_captions
from cogview_jax.evaluation.report import evaluate
from cogview_jax.runtime.errors import InputError
from cogview_jax.tasks.monitor import numbers
from command_runs import retold
from processes import Processes
from tiny_features import offer, write_weights


@pytest.fixture(scope="module")
def captioner(chain, tmp_path_factory):
    return str(retold(chain, tmp_path_factory.mktemp("captioner") / "bundle", "caption"))


def measured(bundle, out, images, **options):
    evaluate(load_benchmark("pictures"), str(bundle), str(out), Options(images=images, **options))
    return json.loads(out.read_text())


def test_ones_own_pictures(chain, captioner, tmp_path, monkeypatch):
    offer(monkeypatch)
    tiny = str(write_weights(tmp_path / "tiny.npz"))
    folder = tmp_path / "mine"
    folder.mkdir()
    captioned = drawn_captions(5, 16, 2)
    true = list(captioned.images.read(range(5)))
    for number, (image, text) in enumerate(zip(true, captioned.texts, strict=True)):
        Image.fromarray(image).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    asked = ImageOptions(real=str(folder), features={"tiny": tiny}, prompts=("a red circle",))
    given = {"count": 5, "rerank_with": captioner, "candidates": 1}
    report = measured(f"{chain.run}/bundle", tmp_path / "r.json", asked, **given)
    model = load(f"{chain.run}/bundle")
    codes = model.encode(np.stack(true)).reshape(5, -1)
    sums = np.zeros((3, 2))
    for text, code in zip(captioned.texts, codes, strict=True):
        example = model.layout.example({"text": model.parts.tokenizer.encode(text), "image": code})
        logits = np.asarray(model.logits(example.tokens[None])[0], np.float64)
        log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
        losses = -log_p[np.arange(len(log_p)), example.targets]
        kinds = (example.text_weights + example.image_weights, example.text_weights)
        for row, weights in zip(sums, (*kinds, example.image_weights), strict=True):
            row += (losses @ weights, weights.sum())
    for name, (total, count) in zip(("loss", "text_loss", "image_loss"), sums, strict=True):
        assert report["loss"][name]["mean"] == pytest.approx(total / count, rel=1e-5), name
    true_loss = load(captioner).score(np.stack(true), captioned.texts).mean()
    assert report["cap_loss"]["true"]["mean"] == pytest.approx(true_loss, rel=1e-5)
    assert report["n_real"] == 5
    page = (tmp_path / "r.html").read_text()
    assert page.count("<figcaption>a red circle</figcaption>") == 4


def test_two_processes_give_the_report_of_one(root, chain, captioner, tmp_path):
    """Of images like COCO's, one of which is missing."""
    captioned, found = drawn_captions(5, 16, 2), {"images": [], "annotations": []}
    (tmp_path / "val").mkdir()
    for number, image in enumerate(captioned.images.read(range(5))):
        found["images"].append({"id": number, "file_name": f"{number}.png"})
        found["annotations"].append({"image_id": number, "caption": captioned.texts[number]})
        if number != 2:
            Image.fromarray(image).save(tmp_path / "val" / f"{number}.png")
    captions, bundle = tmp_path / "captions.json", f"{chain.run}/bundle"
    captions.write_text(json.dumps(found))
    asked = ImageOptions(real=str(tmp_path / "val"), captions=str(captions))
    given = {"count": 5, "rerank_with": captioner, "candidates": 1}
    whole = measured(bundle, tmp_path / "whole.json", asked, **given)
    command = ["-m", "cogview_jax.evaluate", "--benchmark", "pictures", "--bundle", bundle]
    command += ["--real", tmp_path / "val", "--captions", captions, "--num_prompts", "5"]
    command += ["--rerank_with", captioner, "--out", tmp_path / "r.json"]
    with Processes(root, command, 2, 1) as running:
        running.succeed()
        assert "CapLoss, generated" in running.output(0)
        assert "CapLoss, generated" not in running.output(1)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["loss"]["loss"]["n"] == report["cap_loss"]["true"]["n"] == 4
    assert report["cap_loss"]["generated"]["n"] == 5
    assert dict(numbers(report, "")) == pytest.approx(dict(numbers(whole, "")), rel=1e-5)
    assert report["settings"] == whole["settings"]
    assert report["pictures"] == whole["pictures"] == "5 captions of captions.json"


def test_pictures_need_captioned_images(chain, tmp_path):
    with pytest.raises(InputError, match="pictures needs --real: a folder of captioned images, or"):
        measured(f"{chain.run}/bundle", tmp_path / "r.json", ImageOptions(), count=2)
