"""Sets of images whose features are compared: where they come from, and their features on disk."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Int, UInt8

from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.data.sources.source import Source
from cogview_jax.evaluation.blur import blurred
from cogview_jax.evaluation.features import FeatureExtractor
from cogview_jax.evaluation.metrics.features import Rows
from cogview_jax.evaluation.row_store import RowStore
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import log

#: What `sample` writes beside its images.
SAMPLES = "samples.jsonl"
#: Images that are read together, and the threads that read them.
_READ, _THREADS = 64, 4


class ImageSet(Protocol):
    """Images by number.

    Attributes:
        name: for people: where they come from.
        identity: all that the images depend on, as JSON has it.
    """

    name: str
    identity: Any

    def __len__(self) -> int:
        """How many there are, good and bad."""
        ...

    def read(self, numbers: Sequence[int]) -> Iterator[UInt8[np.ndarray, "h w 3"] | BadRecord]:
        """The images of these numbers in their order; BadRecord for what cannot be read."""
        ...


def good_images(images: ImageSet, numbers: Sequence[int]) -> dict[int, UInt8[np.ndarray, "h w 3"]]:
    """Those of the images of these numbers that can be read, by number and in their order."""
    found = zip(numbers, images.read(numbers), strict=True)
    return {number: image for number, image in found if not isinstance(image, BadRecord)}


def require_readable(images: ImageSet, flag: str) -> None:
    """InputError where none of the first images can be read: before hours of work are spent."""
    first = range(min(len(images), _READ))
    found = list(images.read(first))
    bad = [image for image in found if isinstance(image, BadRecord)]
    if len(bad) == len(found):
        why = f", such as {bad[0]}" if bad else ""
        raise InputError(
            f"{flag} {images.name}: none of the first {len(found)} images can be read{why}"
        )


class SourceImages:
    """The images of a source of records: files of a folder, or records of a few files."""

    def __init__(self, source: Source[Record], name: str, shards: Sequence[str] = ()):
        """No image is read. A file that changes, by its size or time, changes the identity.

        Args:
            source: its keys are paths within the folder `name`, or names of records in `shards`.
            name: the folder, for people too; or that of the data set.
            shards: the files that hold all records.
        """
        self.name, self._source = name, source
        files = hashlib.sha256()
        for i in range(len(source)):
            key = source.key(i)
            state = f"{key}\0{_state(name, key)}\0"
            files.update(state.encode("utf-8", "backslashreplace"))
        for shard in shards:
            state = f"{os.path.basename(shard)}\0{_state('', shard)}\0"
            files.update(state.encode("utf-8", "backslashreplace"))
        self.identity = {"images": name, "files": files.hexdigest()}

    def __len__(self) -> int:
        """How many there are, good and bad."""
        return len(self._source)

    def key(self, number: int) -> str:
        """What the source calls an image."""
        return self._source.key(number)

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray | BadRecord]:
        """See `ImageSet`; several threads read."""

        def one(number: int) -> np.ndarray | BadRecord:
            try:
                return self._source[number].image
            except BadRecord as error:
                return error

        with ThreadPoolExecutor(_THREADS) as pool:
            for start in range(0, len(numbers), _READ):
                yield from pool.map(one, numbers[start : start + _READ])


def _state(folder: str, key: str) -> str:
    """Size and time of a file: they tell an image from one that has taken its place."""
    try:
        found = os.stat(os.path.join(folder, key))
    except (OSError, ValueError):
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"


def open_folder(path: str, flag: str, *, captions: bool = False) -> FolderSource:
    """The images of a folder: those that `sample` wrote there, or all in it and below.

    A samples.jsonl, or a listing as `FolderSource` has it, says which files are its images.

    Args:
        path: the folder.
        flag: names it in errors.
        captions: whether an image without a caption is a bad record.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    if not Path(path).is_dir():
        raise InputError(f"{flag} {path}: expected a folder of images, there is none")
    listing = SAMPLES if (Path(path) / SAMPLES).is_file() else ""
    try:
        return FolderSource(path, require_captions=captions, listing=listing)
    except InputError as error:
        raise InputError(f"{flag}: {error}") from error


class StoredRows(Rows):
    """Some columns of some rows of a `RowStore`."""

    def __init__(self, store: RowStore, numbers: Int[np.ndarray, " n"], columns: slice):
        """numbers: of the rows."""
        self._store, self._numbers, self._columns = store, numbers, columns

    @property
    def shape(self) -> tuple[int, int]:
        """Images, and numbers per image."""
        return len(self._numbers), len(range(self._store.width)[self._columns])

    def __getitem__(self, rows: slice | Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """Some rows, read from disk."""
        return self._store.read(self._numbers[rows])[:, self._columns]


@dataclass(frozen=True)
class StoredFeatures:
    """The features of the readable images of a set, on disk.

    Attributes:
        store: a row an image: pooled features, then logits; NaN where the image is unreadable.
        dimension: of the pooled features.
        good: the numbers of the rows of readable images.
    """

    store: RowStore
    dimension: int
    good: Int[np.ndarray, " n"]

    def __len__(self) -> int:
        """How many images have features."""
        return len(self.good)

    @property
    def pooled(self) -> StoredRows:
        """The pooled features, [n, dimension]."""
        return StoredRows(self.store, self.good, slice(self.dimension))

    @property
    def logits(self) -> StoredRows:
        """The logits, [n, classes]."""
        return StoredRows(self.store, self.good, slice(self.dimension, None))


def stored_features(
    images: ImageSet,
    extractor: FeatureExtractor,
    folder: Path,
    *,
    radius: int = 0,
    kernel: str = "pil",
    label: str = "features",
) -> StoredFeatures:
    """The features of a set of images, computed where they are not on disk yet.

    Processes that call it with the same share the work.

    Args:
        images: the set.
        extractor: the network, and how images are resized for it.
        folder: for the rows of this set at this radius alone.
        radius: of the blur that comes before everything else, in pixels (FID-k; arXiv 2105.13290,
            section 4.1); 0 for none.
        kernel: of the blur, a name of `evaluation.blur`.
        label: of the progress line.

    Raises:
        InputError: no image can be read.
    """
    job = {
        "set": images.identity,
        **extractor.describe(),
        "resize": extractor.resize,
        "blur": [radius, kernel] if radius else [],
    }
    width = extractor.dimension + extractor.classes
    store = RowStore(folder, job, count=len(images), width=width, batch=extractor.batch_size)

    def compute(readable: Iterable[np.ndarray], numbers: range) -> Iterator[np.ndarray]:
        for found in extractor(blurred(image, radius, kernel) for image in readable):
            yield np.concatenate([found.pooled, found.logits], axis=1)

    good = fill_rows(store, images, compute, label, said=not radius)
    return StoredFeatures(store, extractor.dimension, good)


def fill_rows(
    store: RowStore,
    images: ImageSet,
    compute: Callable[[Iterable[np.ndarray], range], Iterator[Float[np.ndarray, "n w"]]],
    label: str,
    *,
    said: bool = True,
) -> Int[np.ndarray, " n"]:
    """Computes the rows of a store that are missing, one an image, and gives the numbers of all.

    The row of an image that cannot be read is NaN, and its number is left out. A line says how many
    there are, with the first of them.

    Args:
        store: a row an image.
        images: the set.
        compute: images of any sizes and their numbers -> their rows, some at a time and in order.
        label: of the progress line.
        said: whether the line on images that cannot be read is printed.

    Raises:
        InputError: no image can be read.
    """
    bad: dict[int, BadRecord] = {}

    def rows_of(numbers: range) -> Iterator[np.ndarray]:
        """An image for every number: a black one stands for those that cannot be read."""

        def readable() -> Iterator[np.ndarray]:
            shape: tuple[int, ...] = (64, 64, 3)
            for number, image in zip(numbers, images.read(numbers), strict=True):
                if isinstance(image, BadRecord):
                    bad[number] = image
                    image = np.zeros(shape, np.uint8)
                shape = image.shape
                yield image

        at = 0
        for rows in compute(readable(), numbers):
            some = numbers[at : at + len(rows)]
            rows[[i for i, number in enumerate(some) if number in bad]] = np.nan
            at += len(rows)
            yield rows

    store.fill(rows_of, label)
    good = np.concatenate([~np.isnan(rows[:, 0]) for rows in store.blocks()])
    if not good.any():
        raise InputError(f"{images.name}: none of its {len(images)} images can be read")
    if said and not good.all():
        # Those of other processes, and of the run before an interruption, have no reason here.
        such = f", such as {next(iter(bad.values()))}" if bad else ""
        share = f"{np.count_nonzero(~good)} of {len(images)}"
        log(f"{images.name}: {share} images cannot be read{such}")
    return np.flatnonzero(good)
