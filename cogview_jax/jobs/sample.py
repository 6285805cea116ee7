"""Sampling from a bundle into a folder."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogview_jax.data.images import decode_image
from cogview_jax.data.records import BadRecord
from cogview_jax.data.transforms import center_crop
from cogview_jax.pipeline import BATCH, load
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path, remove_leftovers
from cogview_jax.runtime.progress import Progress
from cogview_jax.sampling.filters import SamplingConfig
from cogview_jax.sampling.grid import caption_grid

#: The grid for people shows at most this many pictures.
SHOWN = 64


def read_prompts(given: Sequence[str], file: str | None) -> list[str]:
    """Prompts from flags, then from a file with one a line; blank lines are passed over.

    Raises:
        InputError: the file cannot be read, or there is no prompt at all.
    """
    prompts = list(given)
    if file:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompts {file} cannot be read as UTF-8 text: {error}") from error
        prompts += [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InputError("no prompt: give --prompt TEXT (repeatable) or --prompts FILE")
    return prompts


@dataclass(frozen=True)
class Draws:
    """How pictures are drawn, whatever of: see the flags of the door."""

    num_images: int = 1
    seed: int = 0
    sampling: SamplingConfig = SamplingConfig()
    batch_size: int = BATCH
    precision: str = "float32"

    def __post_init__(self):
        if self.num_images < 1:
            raise InputError(f"--num_images {self.num_images}: expected at least 1")


def text_to_image(bundle: str, out: str, prompts: Sequence[str], draws: Draws) -> None:
    """Draws pictures into OUT/images/ and describes them in OUT/samples.jsonl and OUT/grid.png.

    Everything is checked before the first file is written, and samples.jsonl is written last.
    """
    model = load(bundle, dtype=draws.precision)
    with Progress(len(prompts) * draws.num_images, "sample", unit="image") as progress:
        drawn = model.generate(
            prompts,
            draws.num_images,
            draws.seed,
            sampling=draws.sampling,
            batch_size=draws.batch_size,
            progress=progress.update,
        )
    _write(out, drawn, [{"prompt": prompt} for prompt in prompts], draws.seed)


def complete(
    bundle: str,
    out: str,
    images: Sequence[str],
    prompts: Sequence[str],
    keep_rows: int | None,
    draws: Draws,
) -> None:
    """Keeps the upper rows of pictures and draws the rest; writes as `text_to_image` does.

    Args:
        bundle, out, draws: as there.
        images: files; their centred square is taken.
        prompts: what each shows, or one for all.
        keep_rows: rows of codes that are kept; None for half of them.

    Raises:
        InputError: an image cannot be read, or the prompts are not as many as the images.
    """
    if not images:
        raise InputError("--task complete needs a picture to complete: --image FILE (repeatable)")
    if len(prompts) not in (1, len(images)):
        raise InputError(
            f"{len(images)} images and {len(prompts)} prompts: expected one prompt for each, or one"
            " for all"
        )
    model = load(bundle, dtype=draws.precision)
    model.need("transformer", "text", "codec")
    texts = list(prompts) * (len(images) // len(prompts))
    size, grid = model.codec.config.image_size, model.codec.config.grid
    rows = grid // 2 if keep_rows is None else keep_rows
    pixels = [read_image(file, size) for file in images]
    with Progress(len(images) * draws.num_images, "complete", unit="image") as progress:
        drawn = [
            model.complete(
                given,
                rows,
                text,
                draws.num_images,
                draws.seed,
                sampling=draws.sampling,
                batch_size=draws.batch_size,
                progress=progress.update,
            )
            for given, text in zip(pixels, texts, strict=True)
        ]
    given = [
        {"prompt": text, "image": file, "keep_rows": rows}
        for file, text in zip(images, texts, strict=True)
    ]
    _write(out, drawn, given, draws.seed)


def read_image(file: str, size: int) -> np.ndarray:
    """The centred square of a picture file, uint8 [size, size, 3]; InputError if there is none."""
    try:
        return center_crop(decode_image(Path(file).read_bytes(), file), size)
    except (OSError, BadRecord) as error:
        raise InputError(f"--image {file} cannot be read: {error}") from error


def _write(
    out: str,
    drawn: Sequence[Sequence[Image.Image]],
    given: Sequence[Mapping[str, Any]],
    seed: int,
) -> None:
    """OUT/images/*.png, OUT/grid.png, and, last, OUT/samples.jsonl: a line a picture.

    drawn: the pictures of each input. given: what their lines say of it, the prompt first.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    lines = []
    for number, (row, fields) in enumerate(zip(drawn, given, strict=True)):
        for index, picture in enumerate(row):
            file = f"images/{number:05d}_{index:03d}.png"
            with atomic_path(folder / file) as temporary:
                picture.save(temporary)
            lines.append({**fields, "index": index, "seed": seed, "file": file})
    pictures = [np.asarray(picture) for row in drawn for picture in row]
    with atomic_path(folder / "grid.png") as temporary:
        captions = [line["prompt"] for line in lines]
        caption_grid(pictures[:SHOWN], captions[:SHOWN]).save(temporary)
    with atomic_path(folder / "samples.jsonl") as temporary:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")
    print(f"{len(lines)} pictures in {folder}, together in {folder}/grid.png", file=sys.stderr)
