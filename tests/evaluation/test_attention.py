"""What the heads of a small model attend to, on the bundles of the chain."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import reference
from cogview_jax import load
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.evaluation.attention_shares import KEYS, OFFSETS
from cogview_jax.evaluation.benchmark import ImageOptions, Options, load_benchmark, table
from cogview_jax.evaluation.captioned_sets import folder_captions
from cogview_jax.evaluation.image_sets import good_images
from cogview_jax.evaluation.report import evaluate
from cogview_jax.runtime.errors import InputError
from command_runs import retold

ATTENTION = load_benchmark("attention")
PROMPTS = ("a red circle", "two blue squares on a gray background")


def measured(bundle, out, **images):
    evaluate(ATTENTION, str(bundle), str(out), Options(3, images=ImageOptions(**images)))
    return json.loads(out.read_text())


def expected_shares(bundle, texts, codes):
    """Shares [layers, heads, 3] and mean weights of words, by the slow transformer."""
    part, model = Bundle(bundle).transformer(), load(bundle)
    stacked = jax.tree.map(np.asarray, part.params)
    text, keys, offsets, words = 0.0, 0.0, 0.0, []
    for caption, own in zip(texts, codes, strict=True):
        pieces = model.parts.tokenizer.encode(caption)
        row = model.layout.tokens({"text": pieces, "image": own.reshape(-1)})[:-1]
        weights = reference.layer_attention(stacked, part.config, row, np.arange(len(row)))
        first = len(row) - own.size
        queries = weights[:, :, first:]
        read = queries[..., 1 : 1 + len(pieces)]
        words.append(read.mean(axis=2))
        text = text + read.sum(axis=-1).mean(axis=-1)
        outside = np.r_[0, 1 + len(pieces) : len(row)]
        keys = keys + queries[..., outside].mean(axis=2)
        grid = len(own)
        found = np.zeros((*weights.shape[:2], grid, 2 * grid - 1))
        for query, key in np.ndindex(own.size, own.size):
            if key <= query:
                rows, columns = np.subtract(divmod(key, grid), divmod(query, grid))
                found[:, :, rows + grid - 1, columns + grid - 1] += queries[
                    :, :, query, first + key
                ]
        offsets = offsets + found.reshape(*weights.shape[:2], -1) / own.size
    best = [
        np.sort(offsets)[..., -OFFSETS:].sum(axis=-1),
        text,
        np.sort(keys)[..., -KEYS:].sum(axis=-1),
    ]
    return np.stack(best, axis=-1) / len(texts), words


def check(report, shares, words, texts):
    found = [
        [head[name] for name in ("position", "text", "few_tokens")] for head in report["heads"]
    ]
    np.testing.assert_allclose(found, shares.reshape(-1, 3), rtol=1e-4)
    assert [(head["layer"], head["head"]) for head in report["heads"]] == list(
        np.ndindex(shares.shape[:2])
    )
    best = max(report["heads"], key=lambda head: head["text"])
    for said, text, weights in zip(report["texts"], texts, words, strict=True):
        assert said["text"] == text
        column = [word["all heads"] for word in said["words"]]
        np.testing.assert_allclose(column, weights.mean(axis=(0, 1)), rtol=1e-4)
        name = f"layer {best['layer']} head {best['head']}"
        column = [word[name] for word in said["words"]]
        np.testing.assert_allclose(column, weights[best["layer"], best["head"]], rtol=1e-4)


def test_images_of_prompts(chain, tmp_path, capsys):
    bundle = chain.run / "bundle"
    report = measured(bundle, tmp_path / "r.json", prompts=PROMPTS)
    model = load(bundle)
    codes = model.generate_codes(PROMPTS)[:, 0]
    check(report, *expected_shares(bundle, PROMPTS, codes), PROMPTS)
    assert sum(report["kinds"].values()) == len(report["heads"]) == 8
    pieces = model.parts.tokenizer.text_tokens(PROMPTS[0])
    said = [word["word"] for word in report["texts"][0]["words"]]
    assert "".join(said).replace("(space)", "") == "".join(pieces).replace("\u2581", "")
    shown = capsys.readouterr().out
    assert table(ATTENTION, report) in shown
    assert "N = 2 images, 8 heads" in shown
    page = (tmp_path / "r.html").read_text()
    assert page.count('<img class="figure"') == 4
    assert (tmp_path / "r.png").is_file()


def test_true_images_of_a_folder(chain, tmp_path):
    bundle = chain.run / "bundle"
    report = measured(bundle, tmp_path / "r.json", real=str(chain.images))
    captioned = folder_captions(str(chain.images), 3, 0)
    images = np.stack(list(good_images(captioned.images, range(3)).values()))
    codes = load(bundle).encode(images)
    check(report, *expected_shares(bundle, captioned.texts, codes), captioned.texts)
    assert report["n"] == 3


def test_what_it_cannot_measure_is_refused(chain, tmp_path):
    bundle, out = chain.run / "bundle", tmp_path / "r.json"
    for images in ({}, {"real": str(chain.images), "prompts": PROMPTS}):
        with pytest.raises(InputError, match="needs captions like those of training: either"):
            measured(bundle, out, **images)
    with pytest.raises(InputError, match="was trained for caption, this needs text_to_image"):
        measured(retold(chain, tmp_path / "caption", "caption"), out, prompts=PROMPTS)
    base = Bundle(bundle)
    part = base.transformer()
    sparse = dataclasses.replace(part.config, attention="sparse")
    part = dataclasses.replace(part, config=sparse)
    write_bundle(tmp_path / "sparse", codec=base, text=base.text(), transformer=part)
    with pytest.raises(InputError, match="measures dense attention; the bundle's transformer has"):
        measured(tmp_path / "sparse", out, prompts=PROMPTS)
    assert not out.exists()
