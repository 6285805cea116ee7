"""What sampling leaves in its folder, each file whole or absent."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.commands.resumable_output import AGAIN, Unfinished
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import check_file_output, check_folder_output, write_file
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.lock import locked

#: The grid for people shows at most this many pictures.
SHOWN = 64
_FILES = ("grid.png", "samples.jsonl", "scores.jsonl", "captions.jsonl")
_FOLDERS = ("images", "small")


@contextlib.contextmanager
def held_output(out: str) -> Iterator[None]:
    """Keeps other jobs out of the folder `out` in the block, and drops what killed ones left.

    Raises:
        InputError: another job writes there, it is a file, or what it holds is in the way.
    """
    folder = Path(out)
    check_folder_output(folder, "--out")
    for name in _FILES:
        check_file_output(folder / name)
    for name in _FOLDERS:
        check_folder_output(folder / name)
    with locked(folder / ".sample.lock", f"the folder {folder}", "choose another --out"):
        remove_leftovers(folder, owned=True)
        yield


def write_pictures(
    out: str,
    pictures: Unfinished,
    lines: Sequence[Mapping[str, Any]],
    scored: Sequence[Mapping[str, Any]] | None = None,
    larger: Unfinished | None = None,
) -> None:
    """OUT/images/*.png, OUT/grid.png, OUT/scores.jsonl if any, and, last, OUT/samples.jsonl.

    Args:
        out: the folder.
        pictures: where the pictures are, under the names of their files.
        lines: of samples.jsonl: the prompt and the "file" of each picture that stays, and more.
        scored: of scores.jsonl. Where there are none, those of an earlier job are deleted.
        larger: where the pictures of images/ are instead; then `pictures` are those of a line's
            "small".
    """
    folder, shown = Path(out), []
    with at_work(f"the pictures are kept in {pictures.folder}: {AGAIN}"):
        for line in lines:
            name = Path(line["file"]).stem
            final = pictures if larger is None else larger
            final.copy(name, folder / line["file"])
            if larger is not None:
                pictures.copy(name, folder / line["small"])
            if len(shown) < SHOWN:
                shown.append(final.read(name))
        write_grid(folder, shown, [_described(line) for line in lines[:SHOWN]])
        if scored is None:
            (folder / "scores.jsonl").unlink(missing_ok=True)
        else:
            write_lines(folder / "scores.jsonl", scored)
        write_lines(folder / "samples.jsonl", lines)
    print(f"{len(lines)} pictures in {folder}, together in {folder}/grid.png", file=sys.stderr)


def write_grid(folder: Path, pictures: Sequence[np.ndarray], captions: Sequence[str]) -> None:
    """FOLDER/grid.png: the first of the pictures, uint8 [h, w, 3] each, and what they show."""
    grid = caption_grid(pictures[:SHOWN], captions[:SHOWN])
    write_file(folder / "grid.png", grid.save)


def write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A JSON object a line."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_file(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _described(line: Mapping[str, Any]) -> str:
    if "rank" not in line:
        return line["prompt"]
    return f"{line['rank']}: {line['score']:.3f} {line['prompt']}"
