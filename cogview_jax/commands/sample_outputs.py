"""What a sampling job leaves in its folder, each file whole or absent."""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.commands.resumable_output import AGAIN, JOB, ResumableOutput
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import (
    check_file_output,
    check_folder_output,
    text_lines,
    write_file,
)
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.lock import locked

#: The grid for people shows at most this many images.
SHOWN = 64
_FILES = ("grid.png", "samples.jsonl", "scores.jsonl", "captions.jsonl")
_FOLDERS = ("images", "small")
#: What samples.jsonl says of images, and how their files are called.
_OF_IMAGES, _OURS = ("file", "small"), re.compile(r"(images|small)/\d+_\d+\.png")


@contextlib.contextmanager
def held_output(out: str) -> Iterator[None]:
    """Keeps other jobs out of the folder `out` in the block, and drops what killed ones left.

    Raises:
        InputError: another job writes there, it is a file, or it holds files that no job wrote
            and that this one would replace.
    """
    folder = Path(out)
    check_folder_output(folder, "--out")
    for name in _FILES:
        check_file_output(folder / name)
    for name in _FOLDERS:
        check_folder_output(folder / name)
    with locked(folder / ".sample.lock", f"the folder {folder}", "choose another --out"):
        remove_leftovers(folder, owned=True)
        _check_own(folder)
        yield


def _check_own(folder: Path) -> None:
    """Refuses images under the names of ours that are not of an earlier job."""
    if (folder / "unfinished" / JOB).exists():  # It may have been killed before it listed them.
        return
    there = [f"{name}/{file.name}" for name in _FOLDERS for file in (folder / name).glob("*.png")]
    foreign = {name for name in there if _OURS.fullmatch(name)} - _listed(folder / "samples.jsonl")
    if not any((folder / name).exists() for name in _FILES[1:]):
        foreign |= {name for name in _FILES[:1] if (folder / name).exists()}
    if foreign:
        raise InputError(
            f"--out {folder} holds {min(foreign)}, which no sampling job wrote and this one would"
            " replace: move it away, or choose another --out"
        )


@dataclass(frozen=True)
class Sample:
    """One image of a job, and what samples.jsonl says of it.

    Attributes:
        prompt, seed, index: what it depends on, beside the bundle and the settings.
        file: where it is, within the output folder; None for one that reranking has dropped.
        image, keep_rows: the file that was given, and how many rows of its codes were kept.
        score, rank: CapLoss, and the place among the images of its prompt, from 1.
        small: the file of what it was before super-resolution.
    """

    prompt: str
    seed: int
    index: int
    file: str | None
    image: str | None = None
    keep_rows: int | None = None
    score: float | None = None
    rank: int | None = None
    small: str | None = None

    @property
    def name(self) -> str:
        """Under which name the image is kept until all are there."""
        assert self.file is not None, "a dropped sample has no image"
        return Path(self.file).stem

    @property
    def label(self) -> str:
        """What stands below it in a grid."""
        if self.score is None:
            return self.prompt
        return f"{self.rank}: {self.score:.3f} {self.prompt}"

    def line(self) -> dict[str, Any]:
        """Its JSON object: what there is, in the order of the contract."""
        order = ("prompt", "image", "keep_rows", "index", "seed", "file", "score", "rank", "small")
        fields = {name: getattr(self, name) for name in order}
        return {name: it for name, it in fields.items() if it is not None or name == "file"}


def write_images(
    out: str,
    images: ResumableOutput,
    samples: Sequence[Sample],
    scored: Sequence[Sample] | None = None,
    larger: ResumableOutput | None = None,
) -> None:
    """OUT/images/*.png, OUT/grid.png, OUT/scores.jsonl if any, and, last, OUT/samples.jsonl.

    Args:
        out: the folder.
        images: where the images are, under the names of the samples.
        samples: those that stay.
        scored: those of scores.jsonl. Without, that of an earlier job is deleted.
        larger: where the images of images/ are instead; then `images` are those of `Sample.small`.
    """
    folder = Path(out)
    shown: list[np.ndarray] = []
    with at_work(f"the images are kept in {images.folder}: {AGAIN}"):
        for sample in samples:
            final = images if larger is None else larger
            final.copy(sample.name, folder / str(sample.file))
            if larger is not None:
                images.copy(sample.name, folder / str(sample.small))
            if len(shown) < SHOWN:
                shown.append(final.read(sample.name))
        write_grid(folder, shown, [sample.label for sample in samples[:SHOWN]])
        if scored is None:
            (folder / "scores.jsonl").unlink(missing_ok=True)
        else:
            write_lines(folder / "scores.jsonl", [sample.line() for sample in scored])
        earlier = _listed(folder / "samples.jsonl")
        write_lines(folder / "samples.jsonl", [sample.line() for sample in samples])
        for name in earlier - _listed(folder / "samples.jsonl"):
            (folder / name).unlink(missing_ok=True)
    print(
        f"{counted(len(samples), 'image')} in {folder}, together in {folder}/grid.png",
        file=sys.stderr,
    )


def _listed(file: Path) -> set[str]:
    """The images that a job's samples.jsonl lists, if it is there, under names that jobs give."""
    try:
        lines = [json.loads(line) for line in text_lines(file.read_bytes())]
    except (OSError, ValueError, RecursionError):
        return set()
    named = {str(line.get(k)) for line in lines if isinstance(line, dict) for k in _OF_IMAGES}
    return {name for name in named if _OURS.fullmatch(name)}


def write_grid(
    folder: Path, images: Sequence[np.ndarray] | np.ndarray, captions: Sequence[str]
) -> None:
    """FOLDER/grid.png: the first of the images, uint8 [h, w, 3] each, and what they show."""
    grid = caption_grid(list(images[:SHOWN]), captions[:SHOWN])
    write_file(folder / "grid.png", grid.save)


def write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """A JSON object a line."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_file(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))
