"""The judge of Fashion-MNIST, and what its benchmark asks for and counts."""

import importlib.util
import json
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from cogview_jax.data import fashion_set
from cogview_jax.data.fashion_set import Shown
from cogview_jax.evaluation.benchmark import ImageOptions, Options
from cogview_jax.evaluation.benchmarks import fashion
from cogview_jax.evaluation.captioned_sets import ArrayImages, folder_captions
from cogview_jax.evaluation.fashion_judge import FashionJudge, Judged, features
from cogview_jax.runtime.errors import InputError
from fashion_files import pictures, write_files


def coloured(labels, seed):
    """Pictures as the folder has them, dark on white."""
    grey = 255 - np.pad(pictures(labels, seed), ((0, 0), (2, 2), (2, 2)))
    return np.stack([grey] * 3, axis=-1)


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """The folder that make.py writes, of hand-made files."""
    place = tmp_path_factory.mktemp("fashion")
    write_files(place / "files", train=200, test=40)
    spec = importlib.util.spec_from_file_location("make_fashion", root / "examples/fashion/make.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    module.make_folder(place / "files", place / "data", {"train": 200, "test": 40})
    return place / "data"


def features_of(picture):
    """Slowly, pixel by pixel: the smaller copy, then a histogram of gradients for each cell."""
    grey = 1 - picture.astype(float).mean(axis=2) / 255
    small = [grey[r : r + 2, c : c + 2].mean() for r in range(0, 32, 2) for c in range(0, 32, 2)]
    histograms = np.zeros((8, 8, 8))
    for r in range(32):
        for c in range(32):
            down = grey[r + 1, c] - grey[r - 1, c] if 0 < r < 31 else 0.0
            right = grey[r, c + 1] - grey[r, c - 1] if 0 < c < 31 else 0.0
            degrees = np.degrees(np.arctan2(down, right)) % 180
            strength = (down**2 + right**2) ** 0.5
            histograms[min(int(degrees // 22.5), 7), r // 4, c // 4] += strength / 16
    return np.concatenate([small, np.sqrt(histograms).ravel()])


def test_features_are_a_small_copy_and_histograms_of_gradients():
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(features(some), [features_of(each) for each in some], atol=1e-9)
    # A picture of another size is averaged first.
    large = some[0].repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_allclose(features([large])[0], features_of(some[0]), atol=1e-9)


def test_the_judge_learns_classes_and_knows_the_rules():
    labels = np.arange(200) % 10
    judge = FashionJudge(coloured(labels, 1), labels)
    new = coloured(labels[:60], 2)
    judged = judge(new)
    assert np.mean(judged.labels == labels[:60]) > 0.95
    assert judged.tones.tolist() == [fashion_set.tone_of(each) for each in new]
    assert judged.shapes.tolist() == [fashion_set.shape_of(each) for each in new]
    # It has learned from labels, not from the order of pictures: with others it says others.
    other = FashionJudge(coloured(labels, 1), (labels + 3) % 10)(new)
    assert np.mean(other.labels == (labels[:60] + 3) % 10) > 0.95


ASKED = fashion.Asked(
    np.array([3, 3, 8, 0]),
    np.array([0, 2, 1, 1]),
    np.array([0, 0, 2, 1]),
    np.array(["en", "zh", "en", "en"]),
)


def test_shares_count_what_is_right():
    """The first is right in all, the second in its tone, the third in nothing, the fourth white."""
    judged = Judged(np.array([3, 1, 5, 0]), np.array([0, 2, 0, -1]), np.array([0, 1, 0, -1]))
    found = fashion.shares(judged, ASKED)
    assert found == {"class": 0.5, "tone": 0.5, "shape": 0.25, "all": 0.25}
    found = fashion.shares(judged, ASKED, ASKED.languages == "zh")
    assert found == {"class": 0.0, "tone": 1.0, "shape": 0.0, "all": 0.0}


def test_chance_is_that_of_two_prompts_that_ask_for_the_same():
    found = fashion.chance(ASKED)
    columns = np.stack(ASKED[:3], axis=1).tolist()
    for i, part in enumerate(("class", "tone", "shape")):
        pairs = [(a[i], b[i]) for a in columns for b in columns]
        assert found[part] == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert found["all"] == 0.25
    assert fashion.chance(fashion.Asked(*(each[[0, 0]] for each in ASKED)))["all"] == 1.0


def test_captions_are_read_back():
    asked = fashion.read_back(["dark narrow dress", "浅色宽款包"], "data/test")
    assert (asked.labels.tolist(), asked.tones.tolist()) == ([3, 8], [0, 2])
    assert (asked.shapes.tolist(), asked.languages.tolist()) == ([0, 2], ["en", "zh"])
    with pytest.raises(InputError, match=r"--real photos: expected the folder test .*'a cat'"):
        fashion.read_back(["grey bag", "a cat"], "photos")


def model(size=32):
    """A stand-in that has all parts and refuses no prompt."""
    return SimpleNamespace(
        need=lambda *parts: None,
        need_task=lambda task: None,
        prompts=SimpleNamespace(pieces_of=list),
        codec=SimpleNamespace(config=SimpleNamespace(image_size=size)),
    )


@pytest.mark.parametrize("size", [32, 64])
def test_a_report_compares_generated_images_with_the_true_ones(folder, tmp_path, monkeypatch, size):
    """Generated images are the true ones of the next prompt, so that shares can be counted."""
    captioned = folder_captions(str(folder / "test"), 30, 5)
    true = list(captioned.images.read(range(30)))
    said = [fashion_set.parse_caption(text)[0] for text in captioned.texts]

    def generated(model, prompts, candidates, folder, options):
        assert (tuple(prompts), candidates) == (captioned.texts, 1)
        return ArrayImages(np.stack([*true[1:], true[0]]), "generated")

    def decoded(model, images, folder, *, bundle, precision):
        found = np.stack(list(images.read(range(len(images)))))
        assert found.shape[1:] == (size, size, 3)
        found[:6] = 255
        return ArrayImages(found, "decoded")

    monkeypatch.setattr(fashion, "sample_asked", generated)
    monkeypatch.setattr(fashion, "encode_images", decoded)
    asked = ImageOptions(real=str(folder / "test"))
    options = Options(count=30, seed=5, images=asked, unfinished=str(tmp_path))
    report, (page,) = fashion.run(model(size), options)
    assert json.loads(json.dumps(report)) == report
    assert (report["prompts"], report["judge_learned_from"]) == (30, 200)
    assert report["true"]["tone"] == report["true"]["shape"] == 1.0
    assert report["true"]["class"] > 0.9
    if size == 32:
        assert report["ceiling"]["tone"] == report["ceiling"]["shape"] == 24 / 30
    for part in ("tone", "shape"):
        pairs = zip(said, [*said[1:], said[0]], strict=True)
        same = [getattr(a, part) == getattr(b, part) for a, b in pairs]
        assert report["generated"][part] == pytest.approx(np.mean(same))
    counts = Counter(said)
    wanted = sum((count / 30) ** 2 for count in counts.values())
    assert report["chance"]["all"] == pytest.approx(wanted)
    languages = [fashion_set.parse_caption(text)[1] for text in captioned.texts]
    assert 0 < languages.count("en") < 30
    parts = [report[f"generated_{each}"]["tone"] * languages.count(each) for each in ("en", "zh")]
    assert sum(parts) / 30 == pytest.approx(report["generated"]["tone"])
    lines = fashion.table(report).splitlines()
    assert [line.split()[0] for line in lines[4:7]] == ["ceiling", "true", "chance"]
    assert "30 prompts" in lines[-1]
    assert len(page.images) == 30
    first = next(i for i in range(30) if said[i] != said[(i + 1) % 30])
    assert page.captions[first].startswith(f"{captioned.texts[first]} (judged: ")


def test_the_folder_is_that_of_the_maker(folder, tmp_path):
    def refused(real, message):
        options = Options(count=3, images=ImageOptions(real=real), unfinished=str(tmp_path))
        with pytest.raises(InputError, match=message):
            fashion.run(model(), options)

    refused(None, "fashion needs --real: expected the folder test that examples/fashion/make.py")
    refused(str(tmp_path / "none"), "expected a folder of images, there is none")
    lone = tmp_path / "lone" / "test"
    lone.mkdir(parents=True)
    for file in (folder / "test").iterdir():
        (lone / file.name).write_bytes(file.read_bytes())
    refused(str(lone), "train beside it, .*/lone/train: expected a folder of images")
    (lone / "captions.jsonl").write_text('{"file": "00000.png", "caption": "a cat"}\n')
    refused(str(lone), "with train beside it; caption 'a cat'")


def test_one_that_shows_nothing_is_told_on_the_page():
    white = ArrayImages(np.full((1, 8, 8, 3), 255, np.uint8), "white")
    asked = fashion.read_back(["grey bag"], "x")
    judged = Judged(np.array([8]), np.array([-1]), np.array([-1]))
    page = fashion._shown(white, judged, asked, ["grey bag"])
    assert page.captions == ["grey bag (judged: nothing)"]
    assert Shown(8, 1, 1) == fashion_set.parse_caption("grey bag")[0]
