"""Captioned shapes: drawings of a few coloured shapes whose caption fixes the image.

A scene is sampled, said in English or Chinese, and drawn at any size. Because a caption can be read
back into its scene, "does the image match the text" is a number (see `shapes.judge`).
Eight colour-shape pairs are held out: each colour and each shape is seen in training, those pairs
never, so they measure composition.

Lengths are shares of the image, x to the right and y downwards; colours are RGB in 0..255.
"""

import dataclasses
import functools
import re

import numpy as np
from jaxtyping import UInt8

from cogview_jax.runtime.errors import InputError
from cogview_jax.shapes.outlines import coverage

# name: (Chinese, RGB)
COLOURS = {
    "red": ("红色", (220, 40, 40)),
    "green": ("绿色", (40, 160, 60)),
    "blue": ("蓝色", (45, 90, 220)),
    "yellow": ("黄色", (245, 205, 40)),
    "purple": ("紫色", (140, 60, 180)),
    "orange": ("橙色", (245, 135, 30)),
    "pink": ("粉色", (245, 130, 180)),
    "black": ("黑色", (25, 25, 25)),
}
# name: (Chinese, English plural)
SHAPES = {
    "circle": ("圆形", "circles"),
    "square": ("正方形", "squares"),
    "triangle": ("三角形", "triangles"),
    "star": ("星形", "stars"),
    "diamond": ("菱形", "diamonds"),
    "ring": ("圆环", "rings"),
    "cross": ("十字", "crosses"),
    "heart": ("心形", "hearts"),
}
# name: (Chinese, RGB)
BACKGROUNDS = {"white": ("白色", (255, 255, 255)), "gray": ("灰色", (185, 185, 185))}
# name: (Chinese, radius)
SIZES = {"small": ("小", 0.13), "large": ("大", 0.21)}
# name: (Chinese, English phrase, centre)
POSITIONS = {
    "center": ("中间", "in the center", (0.5, 0.5)),
    "top left": ("左上角", "at the top left", (0.27, 0.27)),
    "top right": ("右上角", "at the top right", (0.73, 0.27)),
    "bottom left": ("左下角", "at the bottom left", (0.27, 0.73)),
    "bottom right": ("右下角", "at the bottom right", (0.73, 0.73)),
}
# count: (Chinese, English, centres)
COUNTS = {
    2: ("两个", "two", ((0.28, 0.5), (0.72, 0.5))),
    3: ("三个", "three", ((0.27, 0.7), (0.73, 0.7), (0.5, 0.28))),
    4: ("四个", "four", ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72))),
}
# relation: (Chinese, centres of the first and the second)
RELATIONS = {
    "left of": ("左边", ((0.27, 0.5), (0.73, 0.5))),
    "above": ("上面", ((0.5, 0.27), (0.5, 0.73))),
}
KINDS = {"one": 0.5, "many": 0.25, "two": 0.25}  # and their shares
MANY_RADIUS, TWO_RADIUS = 0.16, 0.17
COLOUR_JITTER, CENTRE_JITTER, RADIUS_JITTER = 12, 0.03, 0.07
SPLITS = ("train", "held_out")

Thing = tuple[str, str]  # (colour, shape)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a caption says.

    `things` holds one (colour, shape) for the kinds "one" and "many", and for "two" the first and
    the second named. Attributes that a kind does not have are empty or 0.
    """

    kind: str
    things: tuple[Thing, ...]
    background: str
    size: str = ""  # one
    position: str = ""  # one
    count: int = 0  # many
    relation: str = ""  # two

    @property
    def centres(self) -> tuple[tuple[float, float], ...]:
        """The (x, y) centre of each object, before jitter."""
        if self.kind == "one":
            return (POSITIONS[self.position][2],)
        return COUNTS[self.count][2] if self.kind == "many" else RELATIONS[self.relation][1]

    @property
    def radius(self) -> float:
        """The radius of every object, before jitter."""
        if self.kind == "one":
            return SIZES[self.size][1]
        return MANY_RADIUS if self.kind == "many" else TWO_RADIUS

    @property
    def objects(self) -> tuple[Thing, ...]:
        """The (colour, shape) of each object, in the order of `centres`."""
        return self.things * self.count if self.kind == "many" else self.things


def is_held_out(colour: str, shape: str) -> bool:
    """Whether a pair is never drawn for training: 8 of the 64, one for each colour and shape."""
    return (3 * list(COLOURS).index(colour) + 5 * list(SHAPES).index(shape)) % 8 == 0


@functools.cache
def _pairs(held_out: bool) -> tuple[Thing, ...]:
    return tuple((c, s) for c in COLOURS for s in SHAPES if is_held_out(c, s) == held_out)


def sample_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """Draws a scene; all its pairs are held-out ones where `held_out`, else none is.

    The two objects of a "two" scene differ in colour, so that a caption has one reading.
    """

    def pick(choices):
        choices = tuple(choices)
        return choices[rng.integers(len(choices))]

    kind = tuple(KINDS)[np.searchsorted(np.cumsum(tuple(KINDS.values())), rng.random(), "right")]
    background = pick(BACKGROUNDS)
    first = pick(_pairs(held_out))
    if kind == "one":
        return Scene(kind, (first,), background, size=pick(SIZES), position=pick(POSITIONS))
    if kind == "many":
        return Scene(kind, (first,), background, count=pick(COUNTS))
    second = pick(pair for pair in _pairs(held_out) if pair[0] != first[0])
    return Scene(kind, (first, second), background, relation=pick(RELATIONS))


def caption(scene: Scene, language: str) -> str:
    """Says a scene in English ("en") or Chinese ("zh")."""
    if language not in ("en", "zh"):
        raise InputError(f"language {language!r}: expected one of en, zh")
    colour, shape = scene.things[0]
    if language == "en":
        end = f"on a {scene.background} background"
        if scene.kind == "one":
            return f"a {scene.size} {colour} {shape} {POSITIONS[scene.position][1]} {end}"
        if scene.kind == "many":
            return f"{COUNTS[scene.count][1]} {colour} {SHAPES[shape][1]} {end}"
        first, second = (f"{_article(c)} {c} {s}" for c, s in scene.things)
        return f"{first} {scene.relation} {second} {end}"
    names = [COLOURS[c][0] + SHAPES[s][0] for c, s in scene.things]
    end = f"，{BACKGROUNDS[scene.background][0]}背景"
    if scene.kind == "one":
        return f"{POSITIONS[scene.position][0]}的一个{SIZES[scene.size][0]}{names[0]}{end}"
    if scene.kind == "many":
        return f"{COUNTS[scene.count][0]}{names[0]}{end}"
    return f"{names[0]}在{names[1]}的{RELATIONS[scene.relation][0]}{end}"


def _article(word: str) -> str:
    """The indefinite article of an English word."""
    return "an" if word[0] in "aeiou" else "a"


@functools.cache
def _grammar() -> tuple[tuple[str, re.Pattern], ...]:
    """(kind, pattern) of each form of caption; a named group matches words of one table."""

    def words(group, choices):
        return f"(?P<{group}>{'|'.join(choices)})"

    def column(table, i):
        return [row[i] for row in table.values()]

    def en(i, shapes=tuple(SHAPES)):
        return f"{words(f'colour{i}', COLOURS)} {words(f'shape{i}', shapes)}"

    def zh(i):
        return words(f"colour{i}", column(COLOURS, 0)) + words(f"shape{i}", column(SHAPES, 0))

    en_end = f" on a {words('background', BACKGROUNDS)} background"
    # A text tokenizer that normalises, as SentencePiece's do, gives back the narrow comma.
    zh_end = f"[，,]{words('background', column(BACKGROUNDS, 0))}背景"
    where = words("position", column(POSITIONS, 1))
    relation = words("relation", RELATIONS)
    plural = en(0, column(SHAPES, 1))
    zh_where = words("position", column(POSITIONS, 0))
    zh_relation = words("relation", column(RELATIONS, 0))
    forms = (
        ("one", f"a {words('size', SIZES)} {en(0)} {where}{en_end}"),
        ("many", f"{words('count', column(COUNTS, 1))} {plural}{en_end}"),
        # Models of before the article followed the sound say "a orange star".
        ("two", f"an? {en(0)} {relation} an? {en(1)}{en_end}"),
        ("one", f"{zh_where}的一个{words('size', column(SIZES, 0))}{zh(0)}{zh_end}"),
        ("many", f"{words('count', column(COUNTS, 0))}{zh(0)}{zh_end}"),
        ("two", f"{zh(0)}在{zh(1)}的{zh_relation}{zh_end}"),
    )
    return tuple((kind, re.compile(form)) for kind, form in forms)


def parse_caption(text: str) -> Scene:
    """The scene a caption says, in either language: the inverse of `caption`.

    Raises:
      InputError: the text is none of the six forms of caption.
    """
    tables = {
        "colour": COLOURS,
        "shape": SHAPES,
        "background": BACKGROUNDS,
        "size": SIZES,
        "position": POSITIONS,
        "count": COUNTS,
        "relation": RELATIONS,
    }

    def name(group, word):
        table = tables[group.rstrip("01")]
        return next(key for key, row in table.items() if word == key or word in row)

    for kind, form in _grammar():
        match = form.fullmatch(text)
        if match is None:
            continue
        said = {group: name(group, word) for group, word in match.groupdict().items()}
        things = [(said.pop("colour0"), said.pop("shape0"))]
        if kind == "two":
            things.append((said.pop("colour1"), said.pop("shape1")))
        return Scene(kind, tuple(things), **said)
    raise InputError(
        f"caption {text!r}: expected one like"
        " 'a large red square in the center on a white background',"
        " 'two red squares on a white background',"
        " 'a red square left of a blue ring on a gray background', or its Chinese form"
    )


def draw(scene: Scene, size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "n n 3"]:
    """Draws a scene, antialiased and jittered: uint8 [size, size, 3].

    Every object's centre is jittered by itself, each colour channel once per (colour, shape) named,
    and the radius only in the kind "one". The same generator gives the same image at every size.
    """
    image = np.empty((size, size, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background][1]
    radius = scene.radius
    if scene.kind == "one":
        radius *= 1 + rng.uniform(-RADIUS_JITTER, RADIUS_JITTER)
    paints = [
        COLOURS[colour][1] + rng.integers(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
        for colour, _ in scene.things
    ]
    paints *= len(scene.objects) // len(paints)
    for (_, shape), centre, paint in zip(scene.objects, scene.centres, paints, strict=True):
        x, y = centre + rng.uniform(-CENTRE_JITTER, CENTRE_JITTER, 2)
        image += coverage(shape, size, x, y, radius)[:, :, None] * (paint - image)
    return (image.clip(0, 255) + 0.5).astype(np.uint8)


def drawing(
    seed: int, split: str, index: int, size: int
) -> tuple[Scene, UInt8[np.ndarray, "n n 3"]]:
    """Drawing `index` of a split, always the same: its scene and its image.

    The image is uint8 [size, size, 3]. Raises InputError for a split other than those of
    `SPLITS`.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = sample_scene(rng, held_out=split == "held_out")
    return scene, draw(scene, size, rng)
