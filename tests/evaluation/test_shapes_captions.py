"""The report on models that say what is shown, some of it, or nothing."""

import numpy as np
import pytest

from cogview_jax.evaluation.benchmarks.shapes import caption_report, said
from cogview_jax.shapes.fresh import fresh_scenes
from cogview_jax.shapes.judge import Verdict, judge
from cogview_jax.shapes.scenes import Scene, caption, draw, parse_caption

COUNT, SIZE = 12, 48
ONE = Scene("one", (("red", "star"),), "white", size="large", position="center")
RING = "a small red ring in the center on a white background"
TWO = Scene("two", (("red", "star"), ("blue", "ring")), "gray", relation="left of")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("scene", [ONE, TWO])
def test_the_caption_of_a_scene_says_all_of_it(scene, language):
    assert said(caption(scene, language), scene).all


@pytest.mark.parametrize(
    ("text", "scene", "wrong"),
    [
        ("a small red star in the center on a white background", ONE, {"size"}),
        ("a large blue ring in the center on a gray background", ONE, {"background", "pair"}),
        ("a large red star at the top left on a white background", ONE, {"position"}),
        ("two red stars on a white background", ONE, {"count", "position", "size"}),
        ("a blue ring left of a red star on a gray background", TWO, {"pair"}),
        ("a red star above a blue ring on a gray background", TWO, {"position"}),
        ("a red ring left of a blue ring on a gray background", TWO, {"shape"}),
    ],
)
def test_what_a_text_gets_wrong_is_told_apart(text, scene, wrong):
    wrong = wrong - {"pair"} | ({"colour", "shape"} if "pair" in wrong else set())
    names = ("background", "count", "position", "size", "colour", "shape")
    assert said(text, scene) == Verdict(*[name not in wrong for name in names])


def test_what_is_no_caption_says_nothing():
    assert said("a large red star", ONE) == Verdict(*[False] * 6)


def test_a_report_is_of_fresh_drawings_of_both_splits():
    """A describer that knows the first half of the scenes, and says one thing of all others."""
    fresh = {each.name: each for each in fresh_scenes(COUNT, 5)}
    texts, given = iter(fresh.values()), []

    def describe(images):
        given.append(images)
        return [text if i < COUNT // 2 else RING for i, text in enumerate(next(texts).texts)]

    report = caption_report(describe, size=SIZE, count=COUNT, seed=5)
    assert list(report) == ["seen", "held_out"]
    for (name, split), images in zip(report.items(), given, strict=True):
        scenes = fresh[name].scenes
        assert all(judge(p, scene).all for p, scene in zip(images, scenes, strict=True))
        pairs = [scene.things == (("red", "ring"),) for scene in scenes[COUNT // 2 :]]
        assert split["drawings"] == COUNT
        assert split["said"]["colour_and_shape"] == (COUNT // 2 + sum(pairs)) / COUNT
        right = [scene == parse_caption(RING) for scene in scenes[COUNT // 2 :]]
        assert split["said"]["all"] == (COUNT // 2 + sum(right)) / COUNT


def test_drawings_are_the_same_at_every_size():
    """A large drawing is the small one in more detail, not another."""
    fresh = next(fresh_scenes(3, 0))
    small, large = fresh.drawings(32), fresh.drawings(64)
    np.testing.assert_array_equal(small, fresh.drawings(32))
    means = large.reshape(3, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(means - small).max() < 1
    other = draw(fresh.scenes[0], 32, np.random.default_rng(99))
    assert np.abs(other.astype(float) - small[0]).mean() > 1
