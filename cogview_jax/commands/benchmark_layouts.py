"""Prompts of public benchmarks, and images in the folders that their evaluators read.

Neither evaluator is part of this package: both need a vision model in torch. What they read is:

- GenEval (arXiv 2310.11513): FOLDER/00000/metadata.jsonl, a line of its prompt file, and
  FOLDER/00000/samples/00000.png and on, for every prompt.
- DPG-Bench (arXiv 2403.05135): FOLDER/ID.png for every prompt ID.txt, up to four images in two
  columns.
"""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from cogview_jax.commands.sample_inputs import prompt_lines
from cogview_jax.runtime.bounds import MOST_IMAGES, need_count
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import atomic_path, check_folder_output

#: DPG-Bench cuts an image into so many columns and rows at most.
_SIDE = 2


class BenchmarkLayout(ABC):
    """The prompts of a benchmark, and where the images of each belong.

    Attributes:
        name: of the folder in OUT.
        most_images: of a prompt that the evaluator takes; None for any number.
    """

    name: ClassVar[str]
    most_images: ClassVar[int | None] = None

    @property
    @abstractmethod
    def prompts(self) -> list[str]:
        """In the benchmark's order."""

    @abstractmethod
    def write(self, folder: Path, number: int, images: Sequence[np.ndarray]) -> None:
        """Writes the images of the prompt with this number, uint8 [h, w, 3] each."""


@dataclass(frozen=True)
class GenEval(BenchmarkLayout):
    """GenEval's prompt file, a JSON object a line; they go to the evaluator as they are."""

    entries: Sequence[Mapping[str, Any]]
    name: ClassVar[str] = "geneval"

    @classmethod
    def read(cls, path: str) -> "GenEval":
        """Reads evaluation_metadata.jsonl; InputError for a line without a prompt, or no line."""
        entries = []
        for number, line in enumerate(prompt_lines(path), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"--prompts {path}, line {number}: no JSON: {error}") from error
            if not isinstance(entry, Mapping) or not isinstance(entry.get("prompt"), str):
                raise InputError(
                    f'--prompts {path}, line {number}: expected an object with a "prompt", as in'
                    " GenEval's evaluation_metadata.jsonl"
                )
            entries.append(entry)
        if not entries:
            raise InputError(f"--prompts {path}: the file has no line with a prompt")
        return cls(entries)

    @property
    def prompts(self) -> list[str]:
        """The prompt of each entry."""
        return [entry["prompt"] for entry in self.entries]

    def write(self, folder: Path, number: int, images: Sequence[np.ndarray]) -> None:
        """Writes FOLDER/NUMBER/: metadata.jsonl and samples/."""
        samples = folder / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        line = json.dumps(self.entries[number], ensure_ascii=False)
        (samples.parent / "metadata.jsonl").write_text(line, encoding="utf-8")
        for index, image in enumerate(images):
            Image.fromarray(image).save(samples / f"{index:05d}.png")


@dataclass(frozen=True)
class DPGBench(BenchmarkLayout):
    """DPG-Bench's prompts by their ids, the names of their files without `.txt`."""

    texts: Mapping[str, str]
    name: ClassVar[str] = "dpg"
    most_images: ClassVar[int | None] = _SIDE**2

    @classmethod
    def read(cls, path: str) -> "DPGBench":
        """Reads a folder of prompts ID.txt; InputError where there is none."""
        if not Path(path).is_dir():
            raise InputError(f"--prompts {path}: expected DPG-Bench's folder of prompts, ID.txt")
        files = sorted(file for file in Path(path).glob("*.txt") if file.is_file())
        if not files:
            raise InputError(f"--prompts {path}: the folder has no file ID.txt with a prompt")
        need_count(f"--prompts {path}: number of files", len(files), MOST_IMAGES)
        return cls(
            {file.stem: " ".join(" ".join(prompt_lines(str(file))).split()) for file in files}
        )

    @property
    def prompts(self) -> list[str]:
        """The text of each file, its lines joined."""
        return list(self.texts.values())

    def write(self, folder: Path, number: int, images: Sequence[np.ndarray]) -> None:
        """Writes FOLDER/ID.png: one image, or two columns in reading order."""
        rows, columns, _ = images[0].shape
        side = min(_SIDE, len(images))
        grid = np.zeros((rows * -(-len(images) // side), columns * side, 3), np.uint8)
        for index, image in enumerate(images):
            y, x = divmod(index, side)
            grid[y * rows : (y + 1) * rows, x * columns : (x + 1) * columns] = image
        Image.fromarray(grid).save(folder / f"{list(self.texts)[number]}.png")


LAYOUTS: dict[str, Callable[[str], BenchmarkLayout]] = {
    GenEval.name: GenEval.read,
    DPGBench.name: DPGBench.read,
}


def read_layout(name: str, prompts: str | None) -> BenchmarkLayout:
    """The prompts of a benchmark from what --prompts names; InputError where it is not that."""
    if not prompts:
        raise InputError(f"--layout {name} needs the benchmark's prompts: --prompts PATH")
    return LAYOUTS[name](prompts)


def check_layout(layout: BenchmarkLayout, images: int, out: str, interrupted: bool) -> None:
    """Refuses what the evaluator would not take, and to replace what it may have scored.

    Args:
        layout: of a benchmark.
        images: how many of a prompt there will be.
        out: the folder of the job.
        interrupted: whether it goes on from an interruption.

    Raises:
        InputError: there are too many images, or an earlier job has left its images.
    """
    if layout.most_images is not None and images > layout.most_images:
        raise InputError(
            f"--layout {layout.name} takes at most {layout.most_images} images of a prompt, not"
            f" {images}: change --num_images, or --keep the best by --rerank_with"
        )
    folder = Path(out) / layout.name
    check_folder_output(folder)
    if folder.exists() and not interrupted:
        raise InputError(
            f"{folder} is there, from an earlier job: an evaluator reads all that is in it. Delete"
            " it, or choose another --out"
        )


def write_layout(
    out: str,
    layout: BenchmarkLayout,
    numbers: Sequence[int],
    images: Iterable[Sequence[np.ndarray]],
) -> None:
    """Writes OUT/NAME, whole or not at all.

    Args:
        out: the folder of the job.
        layout: of a benchmark.
        numbers: of the prompts in the layout.
        images: those of each of these prompts, uint8 [h, w, 3].
    """
    place = Path(out) / layout.name
    with at_work(f"the images are in {out}/images"), atomic_path(place) as folder:
        folder.mkdir()
        for number, of_prompt in zip(numbers, images, strict=True):
            layout.write(folder, number, of_prompt)
    print(
        f"images of {counted(len(numbers), 'prompt')} for the evaluator in {place}", file=sys.stderr
    )
