"""The judge of the embedded emoji, and what its benchmark asks for and counts."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from cogview_jax.data import emoji_set
from cogview_jax.evaluation.benchmark import ImageOptions, Options
from cogview_jax.evaluation.benchmarks import emoji
from cogview_jax.evaluation.captioned_sets import ArrayImages
from cogview_jax.evaluation.emoji_judge import EmojiJudge, Judged
from cogview_jax.evaluation.report import evaluate
from cogview_jax.evaluation.upsampling import Upsampler
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from command_runs import retold
from tiny_features import offer, write_weights

CONCEPTS, STYLES = len(emoji_set.concepts()), len(emoji_set.STYLES)


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """By pixels."""
    return EmojiJudge(emoji_set.TILE, None, tmp_path_factory.mktemp("judge"))


def tiles(pairs):
    return np.stack([emoji_set.tile(*pair) for pair in pairs])


def features_of(pixels):
    """Slowly: how far means of 4 x 4 pixels are from white; Pillow rounds those of rows first."""
    rows = []
    for image in pixels:
        of_rows = np.floor(image.reshape(64, 16, 4, 3).mean(axis=2) + 0.5)
        means = np.floor(of_rows.reshape(16, 4, 16, 3).mean(axis=1) + 0.5)
        row = 255 - means.reshape(-1)
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


def nearest_means(images, true, *more):
    """Slowly, of features [n, d] and [concepts, styles, d]: the numbers of concepts and styles.

    `more` are means of further styles.
    """
    style_means = [np.mean([true[c, s] for c in range(CONCEPTS)], axis=0) for s in range(STYLES)]
    style_means += more
    found = []
    for row in images:
        distances = [np.sum((row - mean) ** 2) for mean in style_means]
        style = int(np.argmin(distances))
        own = row - style_means[style]
        cosines = []
        for c in range(CONCEPTS):
            shown = [true[c, s] - style_means[s] for s in range(STYLES)]
            mean = np.mean([each / np.linalg.norm(each) for each in shown], axis=0)
            cosines.append(own @ mean / np.linalg.norm(own) / np.linalg.norm(mean))
        found.append((int(np.argmax(cosines)), style))
    return np.array(found).T


def test_the_judge_takes_the_nearest_class_mean(judge):
    every = [(c, s) for c in range(CONCEPTS) for s in range(STYLES)]
    true = features_of(tiles(every)).reshape(CONCEPTS, STYLES, -1)
    rng = np.random.default_rng(0)
    pairs = [every[i] for i in rng.permutation(len(every))[:24]]
    noise = rng.normal(0, 40, (len(pairs), 64, 64, 3))
    images = np.clip(tiles(pairs) + noise, 0, 255).astype(np.uint8)
    features = judge.features(ArrayImages(images, "noisy"), "noisy")
    np.testing.assert_allclose(features, features_of(images), atol=1e-6)
    concepts, styles = nearest_means(features_of(images), true)
    judged = judge(features)
    np.testing.assert_array_equal(judged.concepts, concepts)
    np.testing.assert_array_equal(judged.styles, styles)
    # Noise leaves most of what an image shows.
    assert np.mean(judged.concepts == [c for c, _ in pairs]) > 0.8


def test_the_judge_learns_a_style_that_is_not_embedded(tmp_path):
    """Inverted tiles of some concepts teach the style, those of others are judged."""
    every = [(c, s) for c in range(CONCEPTS) for s in range(STYLES)]
    true = features_of(tiles(every)).reshape(CONCEPTS, STYLES, -1)
    inverted = 255 - tiles((c, 1) for c in range(64))
    seen, others = inverted[:48], np.concatenate([inverted[48:], tiles(every[:12])])
    names = []

    def seen_as(images, name):
        names.append(name)
        return images

    judge = EmojiJudge(emoji_set.TILE, None, tmp_path, ArrayImages(seen, "seen"), seen_as)
    assert names == ["true", "new_style"]
    judged = judge(judge.features(ArrayImages(others, "others"), "others"))
    mean = features_of(seen).mean(axis=0)
    concepts, styles = nearest_means(features_of(others), true, mean)
    np.testing.assert_array_equal(judged.concepts, concepts)
    np.testing.assert_array_equal(judged.styles, styles)
    assert np.mean(judged.styles[:16] == STYLES) > 0.9
    assert np.mean(judged.styles[16:] == STYLES) < 0.1


def test_the_judge_knows_its_own_error(judge):
    """Each image is judged by means of the others: slowly, for some of them."""
    every = [(c, s) for c in range(CONCEPTS) for s in range(STYLES)]
    true = features_of(tiles(every)).reshape(CONCEPTS, STYLES, -1)
    means = true.mean(axis=0)
    directions = true - means
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    wrong = {"concept": 0, "style": 0}
    for c, s in every:
        others = np.delete(true, c, axis=0).mean(axis=0)
        style = np.argmin(((true[c, s] - others) ** 2).sum(axis=1))
        sums = directions.sum(axis=1)
        sums[c] = np.delete(directions[c], s, axis=0).sum(axis=0)
        own = true[c, s] - means[style]
        concept = np.argmax(sums @ own / np.linalg.norm(sums, axis=1))
        wrong["concept"] += concept != c
        wrong["style"] += style != s
    found = judge.own_error()
    # Float32 may decide a tie in another way.
    for part, count in wrong.items():
        assert found[part] == pytest.approx(count / len(every), abs=2 / len(every))
    assert 0.2 < found["concept"] < 0.6  # by pixels alone


@pytest.mark.parametrize("split", emoji_set.SPLITS)
def test_pairs_are_asked_for_once_in_each_language(split, capsys):
    pairs = emoji_set.pairs(split)
    some = emoji.asked_for(split, len(pairs), 0)
    assert sorted(zip(some.concepts, some.styles, strict=True)) == sorted(pairs)
    assert abs(some.languages.count("en") - some.languages.count("zh")) <= 1
    for concept, style, language, text in zip(*some, strict=True):
        named = emoji_set.concepts()[concept], emoji_set.STYLES[style]
        assert text == emoji_set.caption(*named, language)
        assert emoji_set.parse_caption(text) == named
    every = emoji.asked_for(split, 10**6, 0)
    assert len(set(every.texts)) == len(every.texts)
    assert len({*zip(every.concepts, every.styles, every.languages, strict=True)}) == 2 * len(pairs)
    assert f"have {2 * len(pairs)} captions, all are taken" in capsys.readouterr().err
    assert list(emoji.asked_for(split, 9, 1).texts) != list(emoji.asked_for(split, 9, 2).texts)
    assert list(emoji.asked_for(split, 9, 1).texts) == list(emoji.asked_for(split, 9, 1).texts)


def test_images_to_upsample_are_asked_for_once(capsys):
    pairs = emoji_set.pairs("held_out")
    every = emoji.asked_for("held_out", 300, 0, repeated=False)
    assert sorted(zip(every.concepts, every.styles, strict=True)) == sorted(pairs)
    assert "have 256 images, all are taken" in capsys.readouterr().err


@pytest.mark.parametrize("text_length", [0, 16])
def test_upsampled_images_are_held_against_the_tiles(monkeypatch, text_length):
    layout = make_layout(
        LayoutConfig(task="super_resolution", text_length=text_length, grid=8), Vocabulary(64, 64)
    )
    asked = {split: emoji.asked_for(split, 3, 0, repeated=False) for split in emoji_set.SPLITS}
    true = {
        split: tiles(zip(each.concepts, each.styles, strict=True)) for split, each in asked.items()
    }
    splits = iter(asked)

    def upsample(images, texts):
        split = next(splits)
        means = true[split].reshape(3, 32, 2, 32, 2, 3).mean(axis=(2, 4))
        np.testing.assert_allclose(images, means, atol=1)
        assert list(texts) == (list(asked[split].texts) if text_length else [""] * 3)
        return true[split] // 2

    @contextlib.contextmanager
    def opened(model, options, size, count):
        assert (size, count) == (32, 6)
        yield Upsampler(upsample, lambda images: images)

    monkeypatch.setattr(emoji, "opened_upsampler", opened)
    model = SimpleNamespace(layout=layout)
    measured = emoji._super_resolution(model, asked, Options(count=3))
    for split, name in emoji.NAMES.items():
        report, exact = measured.report[name], true[split].astype(float)
        errors = report["squared_error"]
        assert report["images"] == 3
        expected = np.mean((true[split] // 2 - exact) ** 2)
        assert errors["sampled"]["mean"] == pytest.approx(expected, rel=1e-5)
        assert errors["ceiling"] == {"mean": 0.0, "standard_error": 0.0, "n": 3}
        assert errors["bicubic_back_projected"]["mean"] < errors["bicubic"]["mean"]
        assert errors["bicubic"]["mean"] < errors["bilinear"]["mean"]
    assert "held_out" in emoji.table(measured.report)
    # The last of four in a row of the sheet, between margins of 12.
    sheet = np.asarray(measured.sections[1].image)[12:, 12 + 3 * 140 :]
    shown = true["held_out"][0].repeat(2, axis=0).repeat(2, axis=1)
    np.testing.assert_array_equal(sheet[:128, :128], shown)


def test_shares_count_what_is_right():
    """Two prompts of two candidates each; the third is right in all, the second in its style."""
    asked = emoji.Asked(np.array([3, 5]), np.array([0, 1]), ("en", "zh"), ("a", "b"))
    judged = Judged(np.array([4, 9, 5, 5]), np.array([2, 0, 1, 3]))
    rows = emoji._rows(judged, asked, 2)
    assert rows["generated"] == {"concept": 0.5, "style": 0.5, "both": 0.25}
    assert rows["generated_en"] == {"concept": 0.0, "style": 0.5, "both": 0.0}
    assert rows["generated_zh"] == {"concept": 1.0, "style": 0.5, "both": 0.5}
    assert rows["generated_flat"] == rows["generated_zh"]
    assert "generated_3d" not in rows
    best = emoji._best(np.array([[2.0, 1.0], [0.5, 0.7]]), judged, asked)
    assert best == {"best_of_1": {"concept": 0.5, "style": 0.5, "both": 0.5}}
    scores = np.array([[2.0, 1.0, 3.0, 4.0], [0.5, 0.7, 0.9, 0.1]])
    four = Judged(np.array([3, 3, 0, 0, 5, 5, 5, 0]), np.array([1, 0, 0, 0, 1, 1, 1, 1]))
    best = emoji._best(scores, four, asked)
    assert best["best_of_1"] == {"concept": 1.0, "style": 0.5, "both": 0.5}
    assert best["best_of_4"] == {"concept": 0.5, "style": 1.0, "both": 0.5}


def test_the_report_has_shares_distances_and_the_best(chain, tmp_path, monkeypatch):
    """Of a bundle that knows nothing of emoji, by a feature network that knows nothing either."""
    offer(monkeypatch)
    weights = str(write_weights(tmp_path / "tiny.npz"))
    options = Options(
        count=6,
        images=ImageOptions(features={"tiny": weights}),
        rerank_with=retold(chain, tmp_path / "captioner", "caption"),
        candidates=4,
    )
    out = tmp_path / "report.json"
    evaluate(emoji, str(chain.run / "bundle"), str(out), options)
    report = json.loads(out.read_text())
    assert report["judge"]["features"]["name"] == "tiny"
    assert report["chance"] == {"concept": 1 / 256, "style": 1 / 4, "both": 1 / 1024}
    for split in ("seen", "held_out"):
        rows = report[split]
        assert rows["prompts"] == 6
        assert rows["cap_loss"]["n"] == 6
        for name in ("generated", "best_of_1", "best_of_4", "ceiling"):
            assert rows[name].keys() == {"concept", "style", "both"}, name
        # Half of the prompts are in each language.
        for part in ("concept", "style", "both"):
            halves = [rows[f"generated_{language}"][part] for language in ("en", "zh")]
            assert rows["generated"][part] == pytest.approx(np.mean(halves))
    images = report["held_out_images"]
    assert (images["n_real"], images["n_generated"]) == (256, 6)
    assert images["fid"]["0"] > 0
    for name, higher in emoji.higher_is_better("text_to_image").items():
        split, row, part = name.split("/")
        assert 0 <= report[split][row][part] <= 1
        assert higher
    assert "FID (tiny, clean)" in emoji.table(report)


def test_captions_are_read_back():
    judged = emoji._named(["扁平风格的狐狸", "fox in flat style", "a fox", ""])
    assert judged.concepts[0] == judged.concepts[1]
    assert judged.styles[0] == judged.styles[1] == 1
    assert emoji_set.concepts()[judged.concepts[0]].en == "fox"
    assert list(judged.concepts[2:]) == list(judged.styles[2:]) == [-1, -1]
