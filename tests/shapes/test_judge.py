"""The judge: it passes true drawings, refuses wrong captions, and is as tolerant as a person."""

import dataclasses
import functools
import json
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cogview_jax.shapes import scenes as shapes
from cogview_jax.shapes.judge import ATTRIBUTES, Verdict, compare, judge, shares
from cogview_jax.shapes.reading import Reading, read
from cogview_jax.shapes.scenes import Scene, drawing, parse_caption

#: Drawings are judged at these sizes, those of even numbers at the first: each once, which takes
#: half the time of each at both.
ALTERNATING = (64, 32)


def drawings(numbers: range, size: int) -> list[tuple[Scene, np.ndarray]]:
    return [drawing(11, shapes.SPLITS[i // 2 % 2], i, size) for i in numbers]


@functools.cache
def readings(start: int) -> list[tuple[Scene, Reading]]:
    """What a hundred drawings, the even or the odd ones, show at their size."""
    numbers = range(start, 200, 2)
    return [(scene, read(image)) for scene, image in drawings(numbers, ALTERNATING[start])]


def wrong_scenes(scene: Scene) -> Iterator[tuple[str, Scene]]:
    """(attribute, scene) for every scene that differs in that attribute of one object."""
    tables = {
        "background": ("background", shapes.BACKGROUNDS),
        "size": ("size", shapes.SIZES),
        "position": ("position", shapes.POSITIONS),
        "count": ("count", shapes.COUNTS),
        "relation": ("position", shapes.RELATIONS),
    }
    for field, (attribute, choices) in tables.items():
        now = getattr(scene, field)
        for other in set(choices) - {now} if now else ():
            yield attribute, dataclasses.replace(scene, **{field: other})
    for i, (colour, shape) in enumerate(scene.things):
        others = [("colour", (other, shape)) for other in shapes.COLOURS if other != colour]
        others += [("shape", (colour, other)) for other in shapes.SHAPES if other != shape]
        for attribute, thing in others:
            things = (*scene.things[:i], thing, *scene.things[i + 1 :])
            yield attribute, dataclasses.replace(scene, things=things)
    if scene.kind == "two":
        yield "position", dataclasses.replace(scene, things=scene.things[::-1])


@pytest.mark.parametrize("start", [0, 1], ids=ALTERNATING)
def test_reference_drawings_pass(reference_shapes, start):
    references = json.loads((reference_shapes / "captions.json").read_text(encoding="utf-8"))
    assert len(references) == 240
    size, verdicts = ALTERNATING[start], []
    for reference in references[start::2]:
        image = Image.open(reference_shapes / reference["file"]).convert("RGB")
        image = np.asarray(image.resize((size, size), Image.BOX))
        verdicts.append(judge(image, parse_caption(reference["en"])))
    assert min(shares(verdicts).values()) > 0.99


@pytest.mark.parametrize("start", [0, 1], ids=ALTERNATING)
def test_true_drawings_pass_and_wrong_captions_do_not(start):
    rng = np.random.default_rng(2)
    passed, accepted, wrong = 0, 0, 0
    for scene, reading in readings(start):
        passed += compare(reading, scene).all
        for _, other in wrong_scenes(scene):
            wrong += 1
            accepted += compare(reading, other).all
        for other in (shapes.sample_scene(rng, held_out=bool(i % 2)) for i in range(20)):
            wrong += other != scene
            accepted += other != scene and compare(reading, other).all
    assert passed / len(readings(start)) > 0.99
    assert wrong > 4000
    assert accepted / wrong < 0.005


def test_one_wrong_attribute_leaves_the_others_right():
    for scene, reading in readings(ALTERNATING.index(64))[:60]:
        for attribute, other in wrong_scenes(scene):
            if attribute == "count":
                continue  # then nobody can say which object is which
            verdict = compare(reading, other)
            assert [name for name in ATTRIBUTES if not getattr(verdict, name)] == [attribute]


@pytest.mark.parametrize(("start", "blur"), [(1, 0.8), (0, 1.2)], ids=[32, 64])
def test_blurred_and_faded_images_pass(start, blur):
    """At about the error of a good tokenizer, 0.004 of pixels in [-1, 1]."""
    rng = np.random.default_rng(8)
    verdicts, errors = [], []
    for scene, image in drawings(range(start, 150, 2), ALTERNATING[start]):
        hazy = ndimage.gaussian_filter(image.astype(float), (blur, blur, 0))
        hazy += rng.normal(0, 5, (1, 1, 3)) + rng.normal(0, 3, image.shape)
        hazy = hazy.clip(0, 255).astype(np.uint8)
        errors.append(np.mean((hazy / 127.5 - image / 127.5) ** 2))
        verdicts.append(judge(hazy, scene))
    assert np.mean(errors) > 0.004
    assert shares(verdicts)["all"] > 0.98


def test_larger_images_are_judged_too():
    assert all(judge(image, scene).all for scene, image in drawings(range(20), 256))


def image_of(scene: Scene) -> np.ndarray:
    return shapes.draw(scene, 64, np.random.default_rng(0))


RED_SQUARE = Scene("one", (("red", "square"),), "white", size="large", position="center")


def test_an_empty_image_shows_only_its_background():
    verdict = judge(np.full((64, 64, 3), 255, np.uint8), RED_SQUARE)
    assert verdict == Verdict(True, False, False, False, False, False)


def test_noise_is_refused():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    verdict = judge(noise, RED_SQUARE)
    assert not verdict.background
    assert not verdict.count
    assert not verdict.all


def test_a_bitten_object_has_no_shape():
    image = image_of(RED_SQUARE)
    assert judge(image, RED_SQUARE).all
    image[32:, 32:] = 255
    verdict = judge(image, RED_SQUARE)
    assert verdict.colour
    assert not verdict.shape


def test_one_object_too_many_is_a_wrong_count():
    """Colour and shape can still be said: everything in the image is a red square."""
    two = Scene("many", (("red", "square"),), "white", count=2)
    three = dataclasses.replace(two, count=3)
    verdict = judge(image_of(three), two)
    assert verdict == Verdict(True, False, False, True, True, True)


def test_specks_and_smudges_are_overlooked():
    image = image_of(RED_SQUARE)
    image[3:5, 3:5] = 0
    image[50:60, 4:14] = 190
    assert judge(image, RED_SQUARE).all


def test_touching_objects_are_told_apart():
    """A bridge of two thirds of the contrast joins two red squares."""
    scene = Scene("many", (("red", "square"),), "white", count=2)
    image = image_of(scene)
    image[31:33, 20:44] = np.minimum(image[31:33, 20:44], (232, 112, 112))
    assert judge(image, scene).all


def test_shares_are_by_attribute():
    right = Verdict(True, True, True, True, True, True)
    verdicts = [right, dataclasses.replace(right, colour=False), right, right]
    expected = {name: 1.0 for name in ATTRIBUTES} | {"colour": 0.75, "all": 0.75}
    assert shares(verdicts) == expected
