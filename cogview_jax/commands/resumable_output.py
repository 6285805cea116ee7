"""The images of a job so far, kept apart until all are there.

A job that is killed and started again finds what it had sampled. What earlier jobs left in the
output folder stays as it is until the new images are complete.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cogview_jax.data.images import decode_image, read_image_file
from cogview_jax.data.records import BadRecord
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import (
    atomic_path,
    check_folder_output,
    read_json,
    write_file,
    write_json,
)
from cogview_jax.runtime.leftovers import remove_leftovers
from cogview_jax.runtime.lock import locked
from cogview_jax.runtime.progress import Progress

#: Within the folder: what its images are of.
JOB = "job.json"
#: What a job that failed can be told to do.
AGAIN = "run the same command again to go on"


class ResumableOutput:
    """A folder of images that belong to one job, each under a name."""

    def __init__(self, folder: Path, job: Mapping[str, Any]):
        """Looks at what is there; no image is written before the first one is added.

        Args:
            folder: for the images, the jobs that go on from them, and nothing else.
            job: all that an image depends on, as JSON has it. Images of another job are not taken
                over: the first that is added takes their place.

        Raises:
            InputError: there is a file where a folder should be, a folder of something else, or
                another job is at work there.
        """
        self.folder, self.job = folder, json.loads(json.dumps(job))
        check_folder_output(folder)
        self._lock = contextlib.ExitStack()
        lock = folder.with_name(f".{folder.name}.lock")
        self._lock.enter_context(locked(lock, f"the folder {folder}", "choose another --out"))
        self._begun = False
        if folder.exists():
            self._begun = self._is_mine()
            remove_leftovers(folder, owned=True)

    def missing(self, names: Sequence[str]) -> list[int]:
        """Which of the images `names` are not there yet, or cannot be read."""
        missing = [i for i, name in enumerate(names) if not self._has(name)]
        if len(missing) < len(names):
            done = len(names) - len(missing)
            print(f"{self.folder} has {done} of {len(names)} images: going on", file=sys.stderr)
        return missing

    def add(self, name: str, pixels: np.ndarray) -> None:
        """Keeps an image, uint8 [h, w, 3]."""
        if not self._begun:
            with atomic_path(self.folder) as temporary:
                temporary.mkdir()
                write_json(temporary / JOB, self.job)
            self._begun = True
        write_file(self._file(name), Image.fromarray(pixels).save)

    def read(self, name: str) -> np.ndarray:
        """The image of a name: uint8 [h, w, 3]."""
        return decode_image(read_image_file(self._file(name)), name)

    def complete(
        self,
        names: Sequence[str],
        label: str,
        batches: Callable[[list[int], Callable[[int], None]], Iterator[Iterable[np.ndarray]]],
        windows: int = 1,
    ) -> None:
        """Makes those of the images `names` that are missing, and reports progress.

        Args:
            names: of all images.
            label: of the progress line.
            batches: from the numbers of the missing ones, and a function that is told how many
                units were finished since its last call, to their images in order, some at a time:
                uint8 [b, h, w, 3].
            windows: units of an image where they are parts of it.
        """
        missing = self.missing(names)
        if not missing:
            return
        kept = f"the images so far are kept in {self.folder}: {AGAIN}"
        with (
            at_work(kept),
            Progress(
                windows * len(names),
                label,
                unit="image" if windows == 1 else "window",
                start=windows * (len(names) - len(missing)),
                per_minute=True,
            ) as progress,
        ):
            number = iter(missing)
            for batch in batches(missing, progress.update):
                for pixels in batch:
                    self.add(names[next(number)], pixels)

    def copy(self, name: str, place: Path) -> None:
        """Puts an image under its final path as well."""
        write_file(place, lambda temporary: shutil.copyfile(self._file(name), temporary))

    def remove(self) -> None:
        """Deletes the folder, whose images are elsewhere by now, and lets other jobs in."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.png"

    def _is_mine(self) -> bool:
        """Whether the folder holds this job; says so where it holds another."""
        file = self.folder / JOB
        # It comes with the folder: one without it was made by somebody else.
        if not file.exists():
            raise InputError(
                f"{self.folder} has no {JOB}, so it is no unfinished job: move it away, or choose"
                " another --out"
            )
        try:
            found = read_json(file)
            keys = sorted(key for key in self.job if found.get(key) != self.job[key])
        except (InputError, AttributeError):
            keys = [f"{JOB}, which cannot be read"]
        if keys:
            print(
                f"{self.folder} holds images of another job (of another {', '.join(keys)}): they"
                " are sampled anew",
                file=sys.stderr,
            )
        return not keys

    def _has(self, name: str) -> bool:
        if not self._begun:
            return False
        try:
            self.read(name)
        except (FileNotFoundError, BadRecord, InputError):
            return False
        return True
