"""Table 1, Figure 9, and image tokenizers, on the bundles of the chain."""

import json

import numpy as np
import pytest
from PIL import Image

from coco_set import CocoCaptions, prepared
from cogview_jax import load
from cogview_jax.evaluation.benchmark import ImageOptions, Options, load_benchmark
from cogview_jax.evaluation.benchmarks.fid import open_images
from cogview_jax.evaluation.candidates import best_of
from cogview_jax.evaluation.captioned_sets import drawn_captions
from cogview_jax.evaluation.features import FeatureExtractor
from cogview_jax.evaluation.image_quality import ssim
from cogview_jax.evaluation.metrics.frechet import frechet_distance
from cogview_jax.evaluation.metrics.moments import Moments
from cogview_jax.evaluation.report import evaluate
from cogview_jax.runtime.errors import InputError
from command_runs import retold
from tiny_features import offer, write_weights

COUNT, CANDIDATES = 8, 3


@pytest.fixture(scope="module")
def captioner(chain, tmp_path_factory):
    return str(retold(chain, tmp_path_factory.mktemp("captioner") / "bundle", "caption"))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A file of weights of a small network."""
    offer(monkeypatch)
    return str(write_weights(tmp_path / "tiny.npz"))


def measured(name, bundle, out, images, **options):
    evaluate(load_benchmark(name), str(bundle), str(out), Options(images=images, **options))
    return json.loads(out.read_text())


def features(path, images):
    extractor = FeatureExtractor("tiny", path, batch_size=8)
    return np.concatenate([found.pooled for found in extractor(iter(images))])


def fid(x, y):
    return frechet_distance(Moments.of(x), Moments.of(y)).value


@pytest.fixture(scope="module")
def pool(chain, captioner):
    """The samples of the chain's bundle by its Python face, their CapLoss, and the captions."""
    captioned = drawn_captions(COUNT, 16, 3)
    images = load(f"{chain.run}/bundle").generate(captioned.texts, CANDIDATES, 3)
    images = np.stack([[np.asarray(image) for image in row] for row in images])
    scores = [load(captioner).score(images[:, i], captioned.texts) for i in range(images.shape[1])]
    return captioned, images, np.stack(scores, axis=1)


def test_table1_is_of_the_best_of_the_samples(chain, captioner, pool, tiny, tmp_path, capsys):
    captioned, images, losses = pool
    asked = ImageOptions(features={"tiny": tiny})
    given = {"count": COUNT, "seed": 3, "rerank_with": captioner, "candidates": CANDIDATES}
    report = measured("table1", f"{chain.run}/bundle", tmp_path / "r.json", asked, **given)
    best = images[np.arange(COUNT), losses.argmin(axis=1)]
    true = np.stack(list(captioned.images.read(range(COUNT))))
    assert report["best"]["cap_loss"]["mean"] == pytest.approx(losses.min(axis=1).mean(), rel=1e-5)
    x, y = features(tiny, true), features(tiny, best)
    assert report["best"]["fid"]["0"] == pytest.approx(fid(x, y), rel=1e-6)
    assert list(report["best"]["fid"]) == ["0", "1", "2", "4", "8"]
    model = load(f"{chain.run}/bundle")
    ceiling = fid(x, features(tiny, model.decode(model.encode(true))))
    assert report["ceiling"]["fid"]["0"] == pytest.approx(ceiling, rel=1e-6)
    wrong = load(captioner).score(best, [*captioned.texts[1:], captioned.texts[0]])
    assert report["wrong captions"]["cap_loss"]["mean"] == pytest.approx(wrong.mean(), rel=1e-5)
    said = capsys.readouterr().out
    assert "CogView (paper)     27.10    19.40    13.90    19.40    23.60    18.20     2.43" in said
    assert "this model: tiny, resize clean, N = 8" in said
    page = (tmp_path / "r.html").read_text()
    assert captioned.texts[0] in page
    assert "Worst by CapLoss" in page


def test_table1_of_a_tensorflow_data_set_is_that_of_the_same_folder(
    chain, captioner, tiny, tmp_path
):
    captioned = drawn_captions(4, 16, 5)
    images = dict(enumerate(captioned.images.read(range(4))))
    texts = {number: [text, text * 2] for number, text in enumerate(captioned.texts)}
    prepared(CocoCaptions, tmp_path / "tfds", {"val": range(4)}, images, texts)
    (tmp_path / "folder").mkdir()
    for number, image in images.items():
        Image.fromarray(image).save(tmp_path / "folder" / f"{number}.png")
        (tmp_path / "folder" / f"{number}.txt").write_text("\n".join(texts[number]))
    given = {"count": 3, "seed": 3, "rerank_with": captioner, "candidates": 2}
    tfds = {"captions": "tfds:coco_captions/2014:val", "real": str(tmp_path / "tfds")}
    reports = []
    for name, real in (("tfds", tfds), ("folder", {"real": str(tmp_path / "folder")})):
        asked = ImageOptions(features={"tiny": tiny}, **real)
        out = tmp_path / f"{name}.json"
        reports.append(measured("table1", f"{chain.run}/bundle", out, asked, **given))
    name = "coco_captions/2014/1.1.0/val"
    assert reports[0].pop("captions") == f"3 captions of {name}"
    assert reports[0].pop("data_set") == {
        "name": "coco_captions/2014",
        "version": "1.1.0",
        "split": "val",
        "feature": "captions/text",
        "caption": "one of each image's, at random by seed 3",
    }
    assert {reports[0][row].pop("real") for row in ("best", "ceiling")} == {name}
    assert reports[1].pop("captions") == f"3 captions of {tmp_path / 'folder'}"
    for row in ("best", "ceiling"):
        assert reports[1][row].pop("real") == str(tmp_path / "folder")
    for report in reports:
        report["ceiling"].pop("generated")  # its name has that of the images
    assert reports[0] == reports[1]


def test_figure9_is_table1_at_every_number(chain, captioner, pool, tiny, tmp_path):
    captioned, images, losses = pool
    asked = ImageOptions(features={"tiny": tiny})
    given = {"count": COUNT, "seed": 3, "rerank_with": captioner, "candidates": CANDIDATES}
    report = measured("figure9", f"{chain.run}/bundle", tmp_path / "r.json", asked, **given)
    true = features(tiny, captioned.images.read(range(COUNT)))
    rows = report["by"]["cap_loss"]
    assert [row["candidates"] for row in rows] == [1, 2, 3]
    for row in rows:
        n = row["candidates"]
        best = images[np.arange(COUNT), losses[:, :n].argmin(axis=1)]
        assert row["fid"] == pytest.approx(fid(true, features(tiny, best)), rel=1e-6)
        groups = [fid(true[g::4], features(tiny, best[g::4])) for g in range(4)]
        assert row["fid_of_groups"]["mean"] == pytest.approx(np.mean(groups), rel=1e-6)
        assert row["cap_loss"]["mean"] == pytest.approx(losses[:, :n].min(axis=1).mean(), rel=1e-5)
    with Image.open(tmp_path / "r.png") as drawing:
        assert drawing.size[0] > 500


def test_the_best_of_the_first_candidates():
    scores = np.array([[3.0, 1.0, 2.0], [0.5, np.nan, 0.1]])
    assert best_of(scores, 1, lowest=True).tolist() == [0, 3]
    assert best_of(scores, 3, lowest=True).tolist() == [1, 5]
    assert best_of(scores, 2, lowest=True).tolist() == [1, 3]
    assert best_of(scores, 3, lowest=False).tolist() == [0, 3]


def test_a_bundle_stands_for_its_samples(chain, pool, tiny, tmp_path):
    """Of given prompts, and of the captions of the real images."""
    captioned, images, _ = pool
    folder = tmp_path / "real"
    folder.mkdir()
    true = list(captioned.images.read(range(COUNT)))
    for number, (image, text) in enumerate(zip(true, captioned.texts, strict=True)):
        Image.fromarray(image).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    expected = fid(features(tiny, true), features(tiny, images[:, 0]))
    given = {"real": str(folder), "generated": f"{chain.run}/bundle", "features": {"tiny": tiny}}
    # The workdir has its bundle's weights in its last step.
    steps = {"c": str(chain.run), "d": f"{chain.run}/checkpoints/12"}
    for name, prompts in (("a", captioned.texts), ("b", ()), *((step, ()) for step in steps)):
        given["generated"] = steps.get(name, f"{chain.run}/bundle")
        options = Options(images=ImageOptions(**given, prompts=prompts), seed=3, batch_size=8)
        evaluate(load_benchmark("fid"), None, str(tmp_path / name), options)
        report = json.loads((tmp_path / name).read_text())
        assert report["fid"]["0"] == pytest.approx(expected, rel=1e-6)
        sampled = report["samples_generated"]
        assert (sampled["seed"], sampled["precision"]) == (3, "float32")
        assert sampled["sampling"]["temperature"] == 1.0
    with pytest.raises(InputError, match="is a bundle: expected --prompts FILE"):
        swapped = ImageOptions(real=str(chain.run), generated=str(folder), features={"tiny": tiny})
        evaluate(load_benchmark("fid"), None, str(tmp_path / "e"), Options(images=swapped))


def test_statistics_have_no_captions_for_a_bundle(chain):
    asked = Options(images=ImageOptions(real="statistics.npz"))
    with pytest.raises(InputError, match=f"--generated {chain.run} is a bundle: expected --promp"):
        open_images(str(chain.run), "generated", asked)


def test_what_the_paper_s_benchmarks_need(chain, captioner, tiny, tmp_path):
    out, asked = tmp_path / "r.json", ImageOptions(features={"tiny": tiny})
    with pytest.raises(InputError, match="expected --rerank_with BUNDLE"):
        measured("table1", f"{chain.run}/bundle", out, asked, count=2)
    with pytest.raises(
        InputError, match=rf"the transformer of bundle {chain.run}/bundle was trained"
    ):
        given = {"rerank_with": f"{chain.run}/bundle", "candidates": 2}
        measured("table1", f"{chain.run}/bundle", out, asked, count=2, **given)
    with pytest.raises(InputError, match="trained for caption, this needs text_to_image"):
        measured("figure9", captioner, out, asked, count=2, rerank_with=captioner, candidates=2)
    with pytest.raises(InputError, match="--benchmark table1 measures a bundle: expected --bundle"):
        evaluate(load_benchmark("table1"), None, str(out), Options())
    assert not out.exists()


def test_an_image_tokenizer_is_measured_on_drawings_and_on_a_folder(chain, tiny, tmp_path):
    bundle = chain.codec / "bundle"
    asked = ImageOptions(features={"tiny": tiny})
    report = measured("tokenizer", bundle, tmp_path / "r.json", asked, count=6, seed=1)
    true = np.stack(list(drawn_captions(6, 16, 1).images.read(range(6))))
    model = load(bundle)
    codes = model.encode(true)
    decoded = model.decode(codes)
    errors = np.mean((true.astype(float) - decoded) ** 2, axis=(1, 2, 3)) / 255**2
    assert report["l2"]["mean"] == pytest.approx(errors.mean(), rel=1e-5)
    assert report["l2"]["standard_error"] == pytest.approx(errors.std(ddof=1) / 6**0.5, rel=1e-5)
    psnr = -10 * np.log10(errors).mean()
    assert report["psnr"]["mean"] == pytest.approx(psnr, rel=1e-5)
    assert report["ssim"]["mean"] == pytest.approx(float(ssim(true, decoded).mean()), rel=1e-5)
    assert report["usage"] == len(np.unique(codes)) / model.codec.config.codebook
    assert report["rfid"] == pytest.approx(
        fid(features(tiny, true), features(tiny, decoded)), rel=1e-6
    )
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(true):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "9.png").write_bytes(b"broken")
    again = measured("tokenizer", bundle, tmp_path / "s.json", ImageOptions(real=str(folder)))
    assert (again["n"], again["unreadable"]) == (6, 1)
    assert again["l2"] == report["l2"]
    assert again["perplexity"] == report["perplexity"]
    assert "rfid" not in again
