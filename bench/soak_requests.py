"""Random requests to `cogview serve`, good and malformed, for bench/soak_serve.py."""

import dataclasses
import io
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

IMAGES, EDITS = "/v1/images/generations", "/v1/images/edits"
CAPTIONS, SCORES, UPSCALES = "/v1/captions", "/v1/scores", "/v1/images/upscales"
WORDS = (("red", "blue", "green", "yellow"), ("heart", "car", "star", "butterfly", "fish"))
#: How often each kind comes, of a hundred.
KINDS = {"images": 38, "stream": 16, "edit": 16, "caption": 10, "score": 12, "upscale": 8}
BOUNDARY = "a line that no file has"


@dataclasses.dataclass
class Case:
    """A request, and what became of it.

    Attributes:
        kind: see `KINDS`.
        path: where it goes.
        fields: of the request.
        files: of a form, each a field and bytes; None for JSON.
        status: that is right.
        leaves: seconds after which the client leaves; None where it waits.
        answer: status and body.
    """

    kind: str
    path: str
    fields: dict[str, Any]
    files: list[tuple[str, bytes]] | None = None
    status: int = 200
    leaves: float | None = None
    answer: tuple[int, bytes] | None = None

    @property
    def body(self) -> tuple[bytes, str]:
        """The request's body and its type."""
        if self.files is None:
            return json.dumps(self.fields).encode(), "application/json"
        parts = [("", name, str(value).encode()) for name, value in self.fields.items()]
        parts += [('; filename="a"', name, data) for name, data in self.files]
        body = b"".join(
            f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
            + data
            + b"\r\n"
            for file, name, data in parts
        )
        kind = f'multipart/form-data; boundary="{BOUNDARY}"'
        return body + f"--{BOUNDARY}--\r\n".encode(), kind


def random_cases(seed: int) -> Iterator[Case]:
    """Requests without end."""
    generator = random.Random(seed)
    for number in itertools.count():
        case = good(generator, number)
        if number % 10 == 3:
            case = malformed(generator, case)
        elif number % 10 == 7:
            case.leaves = generator.choice((0.0, 0.02, 0.1, 0.3))
        yield case


def good(generator: random.Random, number: int) -> Case:
    """A request as it should be."""
    (kind,) = generator.choices(list(KINDS), KINDS.values())
    prompt = f"a {' '.join(map(generator.choice, WORDS))}{generator.choice(('', ' in flat style'))}"
    settings = {"seed": number, "temperature": generator.choice((0, 0.5, 1.0))}
    if generator.random() < 0.5:
        settings |= {"top_k": generator.choice((0, 40)), "top_p": generator.choice((0.9, 1))}
    if kind in ("images", "stream"):
        fields = {"prompt": prompt, "n": generator.choice((1, 1, 2, 3)), **settings}
        fields["guidance"] = generator.choice((1, 2, 3.5))
        if generator.random() < 0.15:
            fields["candidates"] = 2
        if kind == "stream":
            partial_images = generator.choice((0, 2, 7)) * ("candidates" not in fields)
            fields |= {"stream": True, "partial_images": partial_images}
        return Case(kind, IMAGES, fields)
    count = 1 if kind in ("edit", "upscale") else generator.choice((1, 2))
    files = [("image", png(image_of(generator))) for _ in range(count)]
    if kind == "edit":
        fields = {"prompt": prompt, **settings, "guidance": generator.choice((1, 2))}
        return Case(kind, EDITS, fields | {"keep_rows": generator.randrange(8)}, files)
    if kind == "caption":
        return Case(kind, CAPTIONS, settings, files)
    if kind == "score":
        return Case(kind, SCORES, {"prompt": prompt}, files)
    return Case(kind, UPSCALES, settings | {"image_size": generator.choice((16, 32))}, files)


def malformed(generator: random.Random, case: Case) -> Case:
    """The same with something wrong in it."""
    wrong: list[dict[str, Any]] = [
        {"fields": case.fields | {"colour": "red"}, "status": 400},
        {"fields": case.fields | {"model": "another"}, "status": 404},
        {"path": "/v1/nothing", "status": 404},
    ]
    if case.kind != "score":
        wrong += [{"fields": case.fields | {"seed": seed}, "status": 400} for seed in (-1, "x")]
    if case.files is None:
        wrong += [
            {"fields": {**case.fields, "prompt": prompt}, "status": 400} for prompt in ("", 5, " ")
        ]
        wrong.append({"fields": case.fields | {"n": 0}, "status": 400})
        wrong.append({"files": [], "status": 415})
    else:
        broken = case.files[0][1][: generator.randrange(60)]
        wrong.append({"files": [("image", broken)], "status": 400})
        wrong.append({"files": [], "status": 400})
        wrong.append({"files": None, "status": 415})
    return dataclasses.replace(case, **generator.choice(wrong))


def image_of(generator: random.Random) -> np.ndarray:
    """Three coloured squares: uint8 [64, 64, 3]."""
    pixels = np.full((64, 64, 3), 255, np.uint8)
    for _ in range(3):
        x, y, side = (generator.randrange(8, 40) for _ in range(3))
        pixels[y : y + side, x : x + side] = [generator.randrange(256) for _ in range(3)]
    return pixels


def png(pixels: np.ndarray) -> bytes:
    """A file of pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
