"""Splits a source into records to train on and held-out ones.

Whether a record is held out depends on its number in the source alone: not on the seed, the mesh or
the processes of a run, nor on how many records follow it; but of so few records that the share is
less than one, one is held out all the same, and a record that is added may take its place. Of a
mixture each part is split by itself, so that its held-out records are those that it has alone.
"""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float, Int, UInt64

from cogview_jax.data.sources.mixture import Mixture, parts_of
from cogview_jax.data.sources.source import Source, described, readers_of
from cogview_jax.runtime.errors import InputError

Item = TypeVar("Item")
#: Record numbers that are looked at together.
_BLOCK = 1 << 20


def split(
    source: Source[Item], share: float, together: int | Mapping[str, int] = 1
) -> tuple[Source[Item], Source[Item]]:
    """The records to train on, and the held-out ones, each in the order of the source.

    Of a mixture both are mixtures of the same parts.

    A record is held out if the hash of its number is below `share`, so about this share of many
    records is. Of so few records that this is none, the one with the smallest hash is held out.

    Args:
        source: all records.
        share: of records that are held out, above 0 and below 1.
        together: so many records in a row are held out, or none of them; then it is the number of
            the group that decides. Of a mixture by the name of the part, where they differ.

    Raises:
        InputError: nothing is left to train on.
    """
    halves = {}
    for part in parts_of(source):
        own = together if isinstance(together, int) else together[part.name]
        try:
            halves[part.name] = _split(part.source, share, own)
        except InputError as error:
            raise InputError(f"part {part.name}: {error}" if part.name else str(error)) from None
    if not isinstance(source, Mixture):
        return halves[""]
    training = source.each(lambda part: halves[part.name][0])
    return training, source.each(lambda part: halves[part.name][1])


def _split(
    source: Source[Item], share: float, together: int
) -> tuple["Subset[Item]", "Subset[Item]"]:
    """The same of a source that is no mixture."""
    groups = held_out_numbers(-(-len(source) // together), share)
    numbers = (groups[:, None] * together + np.arange(together)).ravel()
    numbers = numbers[numbers < len(source)]
    count = len(source) - len(numbers)
    if not count:
        raise InputError(
            f"data.validation_share = {share:g} holds out {len(numbers)} of {len(source)} records,"
            " which leaves none to train on: choose a smaller share or more records"
        )
    # How many records to train on come before each held-out one.
    before = numbers - np.arange(len(numbers))

    def training_number(i: int) -> int:
        return i + int(np.searchsorted(before, i, side="right"))

    note = f"; {len(numbers):,} of them are held out"
    training = Subset(source, count, training_number, note)
    return training, Subset(source, len(numbers), lambda i: int(numbers[i]))


def held_out_numbers(count: int, share: float) -> Int[np.ndarray, " n"]:
    """The numbers of the held-out ones of `count` records, ascending; at least one if there are."""
    found, smallest = [], (np.inf, 0)
    for start in range(0, count, _BLOCK):
        hashes = record_hashes(np.arange(start, min(start + _BLOCK, count), dtype=np.uint64))
        found.append(start + np.flatnonzero(hashes < share))
        first = int(np.argmin(hashes))
        smallest = min(smallest, (float(hashes[first]), start + first))
    numbers = np.concatenate(found) if found else np.zeros(0, np.int64)
    return np.array([smallest[1]]) if count and not len(numbers) else numbers


def record_hashes(numbers: UInt64[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The hash of each record number, in [0, 1): SplitMix64 (Steele et al. 2014, OOPSLA)."""
    x = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53


class Subset(Generic[Item]):
    """Some records of a source, which is itself a source."""

    def __init__(
        self, source: Source[Item], count: int, number: Callable[[int], int], note: str = ""
    ) -> None:
        """Nothing is read.

        Args:
            source: all records.
            count: how many of them there are here.
            number: the number here -> the number in `source`.
            note: is added to the description of the source.
        """
        self._source, self._count, self._number, self._note = source, count, number, note
        self.readers = readers_of(source)

    def __len__(self) -> int:
        """The number of records here, good and bad."""
        return self._count

    def number(self, i: int) -> int:
        """The number of record `i` in the source of all records."""
        return self._number(i)

    def key(self, i: int) -> str:
        """The name of record `i`."""
        return self._source.key(self._number(i))

    def __getitem__(self, i: int) -> Item:
        """Reads record `i`; raises as the source does."""
        return self._source[self._number(i)]

    def describe(self) -> str:
        """The description of the source, and the note."""
        return described(self._source) + self._note
