"""Sampling from a bundle into a folder."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

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


def text_to_image(
    bundle: str,
    out: str,
    prompts: Sequence[str],
    *,
    num_images: int,
    seed: int,
    sampling: SamplingConfig,
    batch_size: int = BATCH,
    precision: str = "float32",
) -> None:
    """Draws pictures into OUT/images/ and describes them in OUT/samples.jsonl and OUT/grid.png.

    Everything is checked before the first file is written, and samples.jsonl is written last.
    """
    if num_images < 1:
        raise InputError(f"--num_images {num_images}: expected at least 1")
    model = load(bundle, dtype=precision)
    with Progress(len(prompts) * num_images, "sample", unit="image") as progress:
        drawn = model.generate(
            prompts,
            num_images,
            seed,
            sampling=sampling,
            batch_size=batch_size,
            progress=progress.update,
        )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    lines = []
    for number, prompt in enumerate(prompts):
        for index, picture in enumerate(drawn[number]):
            file = f"images/{number:05d}_{index:03d}.png"
            with atomic_path(folder / file) as temporary:
                picture.save(temporary)
            lines.append({"prompt": prompt, "index": index, "seed": seed, "file": file})
    pictures = [np.asarray(picture) for row in drawn for picture in row]
    with atomic_path(folder / "grid.png") as temporary:
        captions = [line["prompt"] for line in lines]
        caption_grid(pictures[:SHOWN], captions[:SHOWN]).save(temporary)
    with atomic_path(folder / "samples.jsonl") as temporary:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        temporary.write_text(text, encoding="utf-8")
    print(f"{len(lines)} pictures in {folder}, together in {folder}/grid.png", file=sys.stderr)
