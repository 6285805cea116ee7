"""The paper's Figure 10: a study is made of bundles and folders, and ratings become a table."""

import json

import numpy as np
import pytest
from PIL import Image
from pipeline.conftest import model, parts
from pipeline.small import PROMPTS

from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.evaluation.benchmark import ImageOptions, Options, load_benchmark, table
from cogview_jax.evaluation.human_study import open_study
from cogview_jax.evaluation.metrics.crossed_bootstrap import crossed_interval
from cogview_jax.evaluation.report import evaluate
from cogview_jax.runtime.errors import InputError
from small_study import SYSTEMS, rate, small_study

__all__ = ["model", "parts"]
BENCHMARK = load_benchmark("figure10")


@pytest.fixture(scope="module")
def bundle(parts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "bundle"
    write_bundle(folder, **parts)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Captioned images, two of the second caption, of which the first is taken."""
    folder = tmp_path_factory.mktemp("images")
    for number, caption in enumerate((PROMPTS[1], PROMPTS[0], PROMPTS[1])):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f" {caption}\n")
    return str(folder)


def asked(study, systems=(), **options):
    return ImageOptions(study=str(study), systems=tuple(systems), **options)


def measured(tmp_path, images, **options):
    evaluate(BENCHMARK, None, str(tmp_path / "r.json"), Options(images=images, **options))
    return json.loads((tmp_path / "r.json").read_text())


def test_a_study_of_a_bundle_a_folder_and_true_images(bundle, model, folder, tmp_path, capsys):
    systems = (("ours", bundle), ("theirs", folder), ("truth", f"codec:{bundle}"))
    prompts = (*PROMPTS[:2], PROMPTS[0])
    report = measured(tmp_path, asked(tmp_path / "s", systems, real=folder, prompts=prompts))
    assert report["captions"] == 2
    assert report["all"] == {"raters": 0, "ratings": 0}
    assert f"nobody has rated yet: cogview serve --study {tmp_path}/s" in capsys.readouterr().out
    study = open_study(tmp_path / "s")
    assert study.captions == tuple(PROMPTS[:2])
    true = np.stack([np.asarray(Image.open(f"{folder}/{number}.png")) for number in (1, 0)])
    recovered = model.decode(model.encode(true))
    sampled = model.generate(PROMPTS[:2], seed=0)
    for caption in range(2):
        np.testing.assert_array_equal(study.pixels(caption, "theirs"), true[caption])
        np.testing.assert_array_equal(study.pixels(caption, "truth"), recovered[caption])
        np.testing.assert_array_equal(study.pixels(caption, "ours"), sampled[caption][0])
    assert not (tmp_path / "r.json.unfinished").exists()
    # The same command goes on with the study that is there; other systems are another study.
    rate_first(study)
    images = asked(tmp_path / "s", systems, real=folder, prompts=prompts)
    assert measured(tmp_path, images)["all"]["ratings"] == 1
    with pytest.raises(InputError, match="compares ours, theirs, truth, not ours: choose another"):
        measured(tmp_path, asked(tmp_path / "s", systems[:1]))


def rate_first(study):
    from cogview_jax.evaluation.study_ratings import append_rating, rating_of

    scores = {
        name: {"clarity": 1, "texture": 2, "relevance": 3, "overall": 4} for name in study.names
    }
    append_rating(study, "ann", 0, rating_of(study, scores, study.names[0]))


def test_captions_come_from_the_captioned_images(folder, tmp_path):
    images = asked(tmp_path / "s", (("a", folder), ("b", folder)), real=folder)
    measured(tmp_path, images, count=2)
    assert set(open_study(tmp_path / "s").captions) <= set(PROMPTS[:2])


@pytest.mark.parametrize(
    ("systems", "options", "message"),
    [
        ((), {}, r"0 systems \(none\): a study compares 2 to 8"),
        ((("a", "FOLDER"), ("a", "FOLDER")), {}, "--system a, a: expected different names"),
        ((("a", "FOLDER"), ("b", "FOLDER")), {}, "expected --prompts FILE, or --real FOLDER"),
        (
            (("a", "FOLDER"), ("b", "codec:BUNDLE")),
            {"prompts": PROMPTS[:1]},
            "--system b=codec:.* needs true images: expected --real FOLDER",
        ),
        (
            (("a", "FOLDER"), ("b", "nowhere")),
            {"prompts": PROMPTS[:1]},
            "--system b=nowhere: expected a bundle, a folder of captioned images, or codec:BUNDLE",
        ),
        (
            (("a", "FOLDER"), ("b", "FOLDER")),
            {"prompts": ("x", *PROMPTS[:2])},
            "--system a .* has no image of 1 of the 3 captions, such as 'x'",
        ),
        (
            (("a", "FOLDER"), ("b", "codec:nowhere")),
            {"prompts": PROMPTS[:1], "real": "FOLDER"},
            "--system b: .*nowhere",
        ),
        (
            (("a", "FOLDER"), ("b", "FOLDER")),
            {"prompts": PROMPTS[:1], "real": "FOLDER", "captions": "c.json"},
            "--captions and --prompts: expected one of them",
        ),
    ],
)
def test_what_cannot_be_made_is_said(bundle, folder, tmp_path, systems, options, message):
    def put(text):
        return text.replace("FOLDER", folder).replace("BUNDLE", bundle)

    systems = [(name, put(path)) for name, path in systems]
    options = {
        key: put(value) if isinstance(value, str) else tuple(value)
        for key, value in options.items()
    }
    with pytest.raises(InputError, match=message):
        measured(tmp_path, asked(tmp_path / "s", systems, **options))
    assert not (tmp_path / "s").exists()


def test_an_image_that_cannot_be_read_is_named(bundle, folder, tmp_path):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"no image")
    (bad / "a.txt").write_text(PROMPTS[0])
    prompts = {"prompts": tuple(PROMPTS[:1])}
    with pytest.raises(InputError, match=r"--system theirs: a\.png: unreadable image"):
        measured(tmp_path, asked(tmp_path / "s", (("a", folder), ("theirs", str(bad))), **prompts))
    systems = (("a", folder), ("truth", f"codec:{bundle}"))
    with pytest.raises(
        InputError, match=r"--system truth=codec:.* all true images: a\.png: unread"
    ):
        measured(tmp_path, asked(tmp_path / "s", systems, real=str(bad), **prompts))
    assert not (tmp_path / "s").exists()


def test_it_needs_a_study_and_no_bundle(bundle, tmp_path):
    with pytest.raises(InputError, match="needs --study: a study, or a new folder"):
        evaluate(BENCHMARK, None, str(tmp_path / "r.json"), Options())
    with pytest.raises(InputError, match="name a bundle as --system NAME=BUNDLE"):
        evaluate(BENCHMARK, bundle, str(tmp_path / "r.json"), Options())


@pytest.fixture
def rated(tmp_path):
    """Ann has rated everything, Bob and Eve half; of Eve's two bests one has not the most."""
    study = small_study(tmp_path / "study", 4)
    for caption in range(4):
        rate(study, "ann", caption, best="okapi", value=1 + caption, okapi=5)
    rate(study, "bob", 0, best="okapi", value=2, okapi=4)
    rate(study, "bob", 2, best="tapir", value=3, okapi=2)
    rate(study, "eve", 1, best="quagga", value=1, okapi=2)
    rate(study, "eve", 1, best="quagga", value=3, okapi=4)
    rate(study, "eve", 3, best="okapi", value=3, okapi=4)
    return study


def test_the_numbers(rated, tmp_path, capsys):
    report = measured(tmp_path, asked(rated.folder))
    assert report["raters"] == [
        {"rater": "ann", "captions": 4, "best_has_most": 1.0, "kept_in_paper": True},
        {"rater": "bob", "captions": 2, "best_has_most": 1.0, "kept_in_paper": False},
        {"rater": "eve", "captions": 2, "best_has_most": 0.5, "kept_in_paper": False},
    ]
    every = report["all"]
    assert (every["raters"], every["ratings"]) == (3, 8)
    okapi, tapir = [5, 5, 5, 5, 4, 2, 4, 4], [1, 2, 3, 4, 2, 3, 3, 3]
    for name, scores in (("okapi", okapi), ("tapir", tapir)):
        found = every["systems"][name]["clarity"]
        assert found["mean"] == pytest.approx(np.mean(scores))
        assert found["standard_deviation"] == pytest.approx(np.std(scores))
    shares = [every["systems"][name]["best"]["mean"] for name in SYSTEMS]
    assert shares == [1 / 8, 6 / 8, 1 / 8]
    values = np.full((3, 4), np.nan)
    values[0], values[1, [0, 2]], values[2, [1, 3]] = 5, (4, 2), (4, 4)
    low, high = map(float, crossed_interval(values))
    ends = every["systems"]["okapi"]["overall"]
    assert (ends["low"], ends["high"]) == pytest.approx((low, high))
    assert low < np.mean(okapi) < high
    (between,) = (d for d in every["differences"] if d["systems"] == ["okapi", "tapir"])
    assert between["overall"]["mean"] == pytest.approx(np.mean(okapi) - np.mean(tapir))
    tapirs = np.array([[1.0, 2, 3, 4], [2, 0, 3, 0], [0, 3, 0, 3]])
    ends = map(float, crossed_interval(values - tapirs))
    assert [between["overall"]["low"], between["overall"]["high"]] == pytest.approx(list(ends))
    best = every["systems"]["quagga"]["best"]
    assert 0 < best["low"] < 1 / 8 < best["high"] < 1
    # Of captions that two have rated the best is the same of one in four.
    assert -1 < every["krippendorff_alpha"]["best"] < 0.3
    paper = report["as_in_paper"]
    assert (paper["raters"], paper["ratings"]) == (1, 4)
    assert paper["systems"]["tapir"]["overall"]["mean"] == 2.5
    assert paper["krippendorff_alpha"]["overall"] is None
    out = capsys.readouterr().out
    assert "All ratings (raters: 3, comparisons: 8)" in out
    assert f"okapi              4.25 [{low:.2f}, {high:.2f}]" in out
    assert "75.0% [" in out
    page = (tmp_path / "r.html").read_text()
    assert page.count("<figcaption>okapi: caption") == 4
    assert Image.open(tmp_path / "r.png").height > 900


def test_of_a_single_rating_there_is_no_interval(tmp_path):
    study = small_study(tmp_path / "study", 2)
    rate(study, "ann", 1, value=4)
    report = BENCHMARK.run(None, Options(images=asked(study.folder))).report
    found = report["all"]["systems"]["okapi"]["overall"]
    assert found == {"mean": 4.0, "low": None, "high": None, "standard_deviation": 0.0}
    votes = report["all"]["systems"]["okapi"]["best"]
    assert votes == {"mean": 0.0, "low": None, "high": None}
    (line,) = (line for line in table(BENCHMARK, report).splitlines() if line.startswith("okapi"))
    assert line.split() == ["okapi", "4.00", "4.00", "4.00", "4.00", "0.0%"]


def test_a_wrong_rating_ends_it_before_anything_is_written(rated, tmp_path):
    with (rated.folder / "ratings" / "bob.jsonl").open("a") as file:
        file.write('{"caption": 9, "scores": {}, "best": ""}\n')
    with pytest.raises(InputError, match=r"bob\.jsonl, line 3: caption '9'"):
        measured(tmp_path, asked(rated.folder))
    assert not (tmp_path / "r.json").exists()
