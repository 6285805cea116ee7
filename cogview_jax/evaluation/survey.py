"""What a source of records holds: sizes, pixels, captions, duplicates, and how fast it is read.

Every measure of an image is taken while it is in memory once, in threads; what is kept of a record
is some 250 bytes and its captions.

Legend: n records that can be used.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from cogview_jax.data.duplicates import (
    THUMBNAIL,
    difference_hash,
    equal_groups,
    near_groups,
    thumbnail,
)
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.sources.source import Source, readers_of
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.progress import Progress

#: Threads that read, as many as training has; records that they are given at a time.
_THREADS, _CHUNK = 2, 64
#: Reading alone is timed for so many records, or seconds.
_TIMED_RECORDS, _TIMED_SECONDS = 512, 5.0
#: Examples of a reason.
_EXAMPLES = 3
#: Pairs that are shown, and the side in pixels that they are kept with.
SHOWN, _SHOWN_SIDE = 64, 160
Outcome = TypeVar("Outcome")
#: Shows an image as a model sees it.
View = Callable[[UInt8[np.ndarray, "h w 3"]], UInt8[np.ndarray, "r c 3"]]

_ROW = np.dtype(
    [
        ("number", np.int64),
        ("rows", np.int64),
        ("columns", np.int64),
        ("sha256", "S32"),
        ("hash", np.uint64),
        ("thumbnail", np.uint8, (THUMBNAIL, THUMBNAIL, 3)),
    ]
)


@dataclass(frozen=True)
class Survey:
    """What was found in some records of a source, or in all.

    Attributes:
        records: how many the source has.
        rows: of each record that can be used its number in the source, the rows and columns of its
            image, and what tells duplicates apart [n]; see `_ROW`.
        captions: of each of them [n].
        bad: those that cannot be used, and those that filters leave out.
        levels: the share of pixels of each of the 256 values, by channel [3, 256]; all images count
            alike, however large.
        shown: some records, chosen at random, whose images are reduced.
        rate: records that were read in a second, with so many threads and nothing else.
        threads: how many these are.
    """

    records: int
    rows: np.ndarray
    captions: list[tuple[str, ...]] = field(repr=False)
    bad: list[BadRecord]
    levels: Float[np.ndarray, "c v"]
    shown: list[Record]
    rate: float
    threads: int

    @property
    def texts(self) -> list[str]:
        """All captions."""
        return [text for captions in self.captions for text in captions]

    @property
    def mean(self) -> Float[np.ndarray, " c"]:
        """Of the pixels in [0, 1], by channel."""
        return self.levels @ (np.arange(256) / 255)

    @property
    def std(self) -> Float[np.ndarray, " c"]:
        """Standard deviation of the pixels in [0, 1], by channel."""
        squares = self.levels @ (np.arange(256) / 255) ** 2
        return np.sqrt(np.maximum(0.0, squares - self.mean**2))

    def exact_duplicates(self) -> list[list[int]]:
        """Records with the same pixels: their numbers in the source, group by group."""
        groups = equal_groups(self.rows["sha256"].tolist())
        return [self.rows["number"][group].tolist() for group in groups]

    def near_duplicates(self) -> list[list[int]]:
        """Records that are nearly the same, where not all have the same pixels."""
        copies: dict[bytes, list[int]] = {}
        for place, digest in enumerate(self.rows["sha256"].tolist()):
            copies.setdefault(digest, []).append(place)
        places = list(copies.values())
        different = self.rows[[group[0] for group in places]]
        found = near_groups(different["hash"], different["thumbnail"])
        return [
            self.rows["number"][sorted(place for i in group for place in places[i])].tolist()
            for group in found
        ]


def survey(source: Source[Record], *, count: int, seed: int, view: View | None = None) -> Survey:
    """Reads records of a source and measures them.

    Args:
        source: the records.
        count: how many are read, chosen at random; 0 or more than there are for all.
        seed: of the choice.
        view: the pixels of what it shows are counted, or those of whole images without it.

    Raises:
        InputError: no record can be used.
        SystemFault: the machine cannot read them.
    """
    rng, everything = np.random.default_rng(seed), not 0 < count < len(source)
    numbers = (
        np.arange(len(source)) if everything else rng.choice(len(source), count, replace=False)
    )
    # Some of them may be bad: twice as many are kept as are shown.
    candidates = rng.permutation(numbers)[: 2 * SHOWN].tolist()
    threads = max(_THREADS, readers_of(source))
    rate = _reading_rate(source, threads, rng.permutation(numbers)[:_TIMED_RECORDS].tolist())
    rows = np.zeros(len(numbers), _ROW)
    captions: list[tuple[str, ...]] = []
    bad: list[BadRecord] = []
    filtered = 0
    kept: dict[int, Record] = {}
    levels, chosen = np.zeros((3, 256)), set(candidates)

    def measure(number: int) -> _Measured | BadRecord:
        try:
            record = source[number]
        except BadRecord as error:
            return error
        image = record.image
        seen = image if view is None else view(image)
        return _Measured(
            (number, *image.shape[:2], _sha256(image), difference_hash(image), thumbnail(image)),
            record.captions,
            _histogram(seen),
            replace(record, image=reduced(image)) if number in chosen else None,
        )

    with Progress(len(numbers), "survey", unit="record") as progress:
        for outcome in _in_threads(measure, numbers, threads):
            if isinstance(outcome, BadRecord):
                bad.append(outcome)
            else:
                rows[len(captions)] = outcome.row
                levels += outcome.levels
                captions.append(outcome.captions)
                if outcome.shown is not None:
                    kept[outcome.row[0]] = outcome.shown
            filtered += isinstance(outcome, BadRecord) and outcome.filtered
            progress.update(skipped=len(bad) - filtered, filtered=filtered)
    if not captions:
        counted = [f"{each['records']:,} x {each['reason']}" for each in reasons(bad)]
        raise InputError(
            f"none of the {len(numbers):,} records that were read can be used:"
            f" {'; '.join(counted) or 'there is none'}"
        )
    used = len(captions)
    shown = [kept[number] for number in candidates if number in kept][:SHOWN]
    return Survey(len(source), rows[:used], captions, bad, levels / used, shown, rate, threads)


def reasons(bad: Sequence[BadRecord]) -> list[dict[str, Any]]:
    """Why records are not used, the most frequent reason first, with examples of each."""
    kinds: dict[tuple[bool, str], list[BadRecord]] = {}
    for error in bad:
        kinds.setdefault((error.filtered, _kind(error)), []).append(error)
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    return [
        {
            "records": len(errors),
            "reason": kind,
            "filtered": is_filtered,
            "examples": [str(error) for error in errors[:_EXAMPLES]],
        }
        for (is_filtered, kind), errors in ordered
    ]


def _kind(error: BadRecord) -> str:
    """A reason without what differs from record to record: the name of its file, and numbers."""
    stem = os.path.splitext(os.path.basename(error.key))[0]
    text = re.sub(rf"{re.escape(stem)}(?=\.\w)", "NAME", error.reason) if stem else error.reason
    return re.sub(r"\d+(\.\d+)?", "N", text)


@dataclass(frozen=True)
class _Measured:
    """What is kept of a record: its row, captions, the levels of its pixels, and it if shown."""

    row: tuple
    captions: tuple[str, ...]
    levels: Float[np.ndarray, "c v"]
    shown: Record | None


def _in_threads(
    measure: Callable[[int], Outcome], numbers: Int[np.ndarray, " n"], threads: int
) -> Iterator[Outcome]:
    """What is measured of each record, in the order of `numbers`."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(numbers), _CHUNK):
            yield from pool.map(measure, numbers[start : start + _CHUNK].tolist())


def _reading_rate(source: Source[Record], threads: int, numbers: Sequence[int]) -> float:
    """Records a second that threads read, good and bad; nothing else is done with them."""

    def read(number: int) -> None:
        with contextlib.suppress(BadRecord):
            source[number]

    if not numbers:
        return 0.0
    read(numbers[0])  # it may open files that stay open
    done, began = 0, time.perf_counter()
    for _ in _in_threads(read, np.array(numbers), threads):
        done += 1
        if time.perf_counter() - began > _TIMED_SECONDS:
            break
    return done / max(1e-9, time.perf_counter() - began)


def _sha256(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """The hash of the pixels and of how many rows they are in."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _histogram(image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "c v"]:
    """The share of the image's pixels of each value, by channel."""
    counts = np.array(Image.fromarray(image).histogram()).reshape(3, 256)
    return counts / (image.shape[0] * image.shape[1])


def reduced(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image with sides of at most `_SHOWN_SIDE` pixels."""
    small = Image.fromarray(image)
    small.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return np.asarray(small)
