"""What a conversion is given, where it may write, and what it says meanwhile."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.checkpoints.stored_tree import Deferred
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import check_folder_output
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.lock import locked
from cogview_jax.runtime.paths import local_path
from cogview_jax.runtime.progress import Progress

Part = TypeVar("Part", CodecPart, TransformerPart)

#: The file that describes an export, in its folder.
EXPORT = "export.json"
#: Said if the machine fails while `{}` is written.
NOTHING_WRITTEN = "{} is as it was, and the same command starts anew"


@dataclasses.dataclass(frozen=True)
class SourceFiles:
    """Files of others, and settings that they do not hold. None means that one is not given.

    Attributes:
        transformer: of the official release the folder with the tracker file; else a file.
        image_tokenizer: the file of the image tokenizer.
        text_tokenizer: the SentencePiece model.
        num_heads: the number of attention heads of the transformer.
        codes: the number of image codes in its vocabulary, needed if there is no image tokenizer.
        pieces: the number of text pieces in its vocabulary, needed if there is no text tokenizer.
        grid: rows and columns of the codes of an image.
        layout_task: the task whose sequences the transformer was trained on.
    """

    transformer: str | None = None
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    num_heads: int | None = None
    codes: int | None = None
    pieces: int | None = None
    grid: int | None = None
    layout_task: str | None = None

    @property
    def given(self) -> list[str]:
        """The names of what is given."""
        return [name for name, value in dataclasses.asdict(self).items() if value is not None]


@contextlib.contextmanager
def held_folder(out: str) -> Iterator[Path]:
    """The folder that a command writes, which no other process writes meanwhile.

    What killed programs left beside it is deleted.

    Raises:
        InputError: it cannot be a folder, or another process writes it.
    """
    check_folder_output(out, "--out", replaced=True)
    local_path(out, "--out")
    path = Path(out).absolute()
    lock = path.with_name(f".{path.name}.convert.lock")
    with locked(lock, f"the output {out}", "choose another --out"):
        remove_leftovers(path.parent)
        yield path


def check_bundle_output(out: str) -> Path:
    """Where a bundle is to be; InputError where something else would be lost."""
    return _check_output(out, "bundle.json", "bundle")


def check_export_output(out: str) -> Path:
    """Where an export is to be; InputError where something else than an export would be lost."""
    return _check_output(out, EXPORT, "export")


def _check_output(out: str, file: str, kind: str) -> Path:
    path = Path(out)
    if not _is_free(path) and not (path / file).is_file():
        raise InputError(f"--out {out} exists and is no {kind}: choose another, or delete it")
    return path


def check_folder_is_free(out: str) -> Path:
    """Where files are to be; InputError where something would be lost."""
    path = Path(out)
    if not _is_free(path):
        raise InputError(f"--out {out} exists and is not empty: choose another, or delete it")
    return path


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def progress_of(*parts: CodecPart | TransformerPart | None, label: str = "convert") -> Progress:
    """Counts the arrays of some parts."""
    count = sum(len(jax.tree.leaves(part.params)) for part in parts if part is not None)
    return Progress(count, label, unit="array")


def reporting(part: Part, progress: Progress) -> Part:
    """The part, every array of which reports that it is made."""

    def reporting_array(array: Deferred) -> Deferred:
        def make() -> np.ndarray:
            made = array.make()
            progress.update()
            return made

        return dataclasses.replace(array, make=make)

    return dataclasses.replace(part, params=jax.tree.map(reporting_array, part.params))


def log(line: str) -> None:
    """Says a line on standard error."""
    print(line, file=sys.stderr)
