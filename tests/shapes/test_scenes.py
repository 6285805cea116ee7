"""Scenes, captions and drawings, by the reference captions, by geometry and by hand."""

import collections
import json
import unicodedata

import numpy as np
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.shapes import scenes as shapes
from cogview_jax.shapes.outlines import coverage
from cogview_jax.shapes.scenes import Scene, caption, draw, drawing, parse_caption


def reference_scene(spec: dict) -> Scene:
    """A scene from the attributes that the reference drawings list beside their captions."""
    if spec["kind"] == "rel":
        things = (tuple(spec["a"]), tuple(spec["b"]))
        return Scene("two", things, spec["bg"], relation=spec["rel"])
    things = ((spec["c"], spec["s"]),)
    if spec["kind"] == "many":
        return Scene("many", things, spec["bg"], count=spec["n"])
    return Scene("one", things, spec["bg"], size=spec["size"], position=spec["pos"])


@pytest.fixture(scope="module")
def references(reference_shapes) -> list[dict]:
    return json.loads((reference_shapes / "captions.json").read_text(encoding="utf-8"))


def scenes(count: int, held_out: bool = False) -> list[Scene]:
    rng = np.random.default_rng(7)
    return [shapes.sample_scene(rng, held_out) for _ in range(count)]


def test_captions_are_the_references(references):
    for reference in references:
        scene = reference_scene(reference["spec"])
        assert caption(scene, "en") == reference["en"]
        assert caption(scene, "zh") == reference["zh"]


def test_captions_of_before_the_article_followed_the_sound_are_understood():
    now = "an orange star above an orange ring on a white background"
    before = now.replace("an orange", "a orange")
    scene = shapes.parse_caption(before)
    assert shapes.parse_caption(now) == scene
    assert caption(scene, "en") == now


def test_reference_splits_follow_the_held_out_rule(references):
    for reference in references:
        held_out = [
            shapes.is_held_out(*thing) for thing in reference_scene(reference["spec"]).things
        ]
        assert set(held_out) == {reference["split"] == "held_out"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_parsing_inverts_captions(language):
    for scene in scenes(1000) + scenes(300, held_out=True):
        assert parse_caption(caption(scene, language)) == scene


def test_the_comma_may_be_as_text_tokenizers_give_it_back():
    """They normalise to compatible forms (NFKC), in which the wide comma is the narrow one."""
    for scene in scenes(20):
        text = caption(scene, "zh")
        assert parse_caption(unicodedata.normalize("NFKC", text)) == scene


def test_captions_of_different_scenes_differ():
    distinct = set(scenes(3000))
    assert len({caption(scene, "en") for scene in distinct}) == len(distinct)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a small red circle in the center on a white background.",
        "five red circles on a white background",
        "two red circle on a white background",
        "中间的一个小红色圆形",
    ],
)
def test_other_captions_are_refused(text):
    with pytest.raises(InputError, match="expected one like"):
        parse_caption(text)


def test_unknown_language_is_refused():
    with pytest.raises(InputError, match="en, zh"):
        caption(scenes(1)[0], "fr")


def test_unknown_split_is_refused():
    with pytest.raises(InputError, match="train, held_out"):
        drawing(0, "test", 0, 32)


def test_held_out_pairs():
    pairs = [(c, s) for c in shapes.COLOURS for s in shapes.SHAPES if shapes.is_held_out(c, s)]
    # Written out by hand from (3 x colour + 5 x shape) mod 8 = 0.
    assert pairs == [
        ("red", "circle"),
        ("green", "square"),
        ("blue", "triangle"),
        ("yellow", "star"),
        ("purple", "diamond"),
        ("orange", "ring"),
        ("pink", "cross"),
        ("black", "heart"),
    ]


def test_splits_keep_their_pairs():
    seen = {thing for scene in scenes(2000) for thing in scene.things}
    held_out = {thing for scene in scenes(500, held_out=True) for thing in scene.things}
    assert (len(seen), len(held_out)) == (56, 8)
    assert not seen & held_out
    assert all(shapes.is_held_out(*thing) for thing in held_out)


def test_shares_of_kinds_and_attributes():
    drawn = scenes(4000)
    kinds = collections.Counter(scene.kind for scene in drawn)
    assert kinds["one"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert kinds["many"] / 4000 == pytest.approx(0.25, abs=0.03)
    for attribute, choices in (("size", 2), ("position", 5), ("count", 3), ("relation", 2)):
        values = [getattr(scene, attribute) for scene in drawn]
        counts = collections.Counter(value for value in values if value)
        assert len(counts) == choices
        assert min(counts.values()) > 0.85 * sum(counts.values()) / choices


def test_two_objects_differ_in_colour():
    twos = [scene for scene in scenes(2000) if scene.kind == "two"]
    assert all(scene.things[0][0] != scene.things[1][0] for scene in twos)


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi),
        ("square", 1.7**2),
        ("triangle", 1.9 * 1.75 / 2),
        ("star", 5 * 0.42 * np.sin(np.pi / 5)),
        ("diamond", 1.4),
        ("ring", np.pi * (1 - 0.55**2)),
        ("cross", 2 * 2 * 0.66 - 0.66**2),
        ("heart", 180 * np.pi / 256),
    ],
)
@pytest.mark.parametrize("size", [16, 64])
def test_areas_of_outlines(shape, area, size):
    """Areas by geometry; the sum of soft coverage has no error of sampling."""
    covered = coverage(shape, size, 0.47, 0.52, 0.3).sum() / size**2
    assert covered == pytest.approx(area * 0.3**2, rel=0.005)


def test_coverage_lies_where_it_was_put():
    """A square of side 0.34 by hand, on 10 pixels: columns 3 to 6, of the outer two 0.7."""
    expected = np.zeros((10, 10))
    line = np.array([0, 0, 0, 0.7, 1, 1, 0.7, 0, 0, 0])
    expected[:] = line[:, None] * line
    np.testing.assert_allclose(coverage("square", 10, 0.5, 0.5, 0.2), expected, atol=0.01)
    moved = coverage("square", 10, 0.6, 0.4, 0.2)
    np.testing.assert_allclose(moved, np.roll(expected, (-1, 1), (0, 1)), atol=0.01)


def test_outlines_stand_upright():
    """Triangle and star point up, the heart down; all mirror."""
    for shape in shapes.SHAPES:
        outline = coverage(shape, 64, 0.5, 0.5, 0.4)
        np.testing.assert_allclose(outline, outline[:, ::-1], atol=1e-3)
        rows = outline.sum(axis=1)
        rows = rows[rows > 0.1]
        if shape in ("triangle", "star", "heart"):
            top, bottom = rows[:5].sum(), rows[-5:].sum()
            assert (top < bottom) == (shape != "heart")


@pytest.mark.parametrize("size", [32, 64])
def test_drawings_have_the_colours_and_centres_of_the_table(size):
    """Read off the pixels: background exact, colour and centre within their jitter."""
    rng = np.random.default_rng(3)
    y, x = (np.indices((size, size)) + 0.5) / size
    for _ in range(60):
        scene = shapes.sample_scene(rng)
        if scene.kind != "one" or scene.things[0][1] in ("triangle", "star", "heart", "ring"):
            continue  # the centroid of the others is not their centre, or the centre not painted
        image = draw(scene, size, rng).astype(float)
        ground = np.array(shapes.BACKGROUNDS[scene.background][1])
        assert (image[0] == ground).all()
        weight = np.abs(image - ground).sum(axis=2)
        cx, cy = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
        wanted = shapes.POSITIONS[scene.position][2]
        assert abs(cx - wanted[0]) < 0.031
        assert abs(cy - wanted[1]) < 0.031
        paint = image[int(cy * size), int(cx * size)]
        assert np.abs(paint - shapes.COLOURS[scene.things[0][0]][1]).max() <= 12


def test_counts_and_relations_are_drawn_at_their_slots():
    rng = np.random.default_rng(4)
    for scene in scenes(200):
        image = draw(scene, 64, rng).astype(float)
        painted = np.abs(image - shapes.BACKGROUNDS[scene.background][1]).sum(axis=2) > 60
        expected = {"one": 1, "many": scene.count, "two": 2}[scene.kind]
        assert len(scene.objects) == len(scene.centres) == expected
        for (colour, _), (cx, cy) in zip(scene.objects, scene.centres, strict=True):
            row, column = int(cy * 64), int(cx * 64)
            near = image[row - 9 : row + 10, column - 9 : column + 10]
            near = near[painted[row - 9 : row + 10, column - 9 : column + 10]]
            assert np.abs(np.median(near, axis=0) - shapes.COLOURS[colour][1]).max() <= 12


def test_a_small_drawing_is_the_large_one_reduced():
    for index in range(40):
        scene, large = drawing(5, "train", index, 64)
        again, small = drawing(5, "train", index, 32)
        reduced = large.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
        assert scene == again
        assert np.abs(reduced - small).max() <= 2


def test_drawings_depend_on_seed_split_and_index_alone():
    first = drawing(0, "train", 3, 32)
    drawing(0, "train", 4, 32)
    again = drawing(0, "train", 3, 32)
    assert first[0] == again[0]
    assert (first[1] == again[1]).all()
    others = [drawing(1, "train", 3, 32), drawing(0, "held_out", 3, 32), drawing(0, "train", 4, 32)]
    assert all((image != first[1]).any() for _, image in others)


@pytest.mark.parametrize("size", [16, 48, 256])
def test_any_size(size):
    _, image = drawing(0, "held_out", 0, size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
