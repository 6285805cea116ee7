"""Several sources with weights, which training reads as one stream.

As a source a mixture has the records of its parts, one part after the other. Weights are for the
loader alone: they are shares of the rows that training reads, whatever the sizes of the parts. A
small part is read more often than a large one, each time all of it, and no part has to be read to
its end.
"""

import bisect
import itertools
import keyword
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from cogview_jax.data.interleaving import Interleaving
from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources.source import Source, captions_of, described, readable, readers_of
from cogview_jax.runtime.config import SettingError
from cogview_jax.runtime.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part(Generic[Item]):
    """A source and how it is mixed.

    Attributes:
        name: of the part; empty where a source is alone.
        weight: its share of the rows is this, divided by the sum of all parts.
        source: its records.
        first: the number of its first record in the mixture.
    """

    name: str
    weight: float
    source: Source[Item]
    first: int = 0


class Mixture(Generic[Item]):
    """The records of all parts as a source; `interleaving` says how their streams are mixed.

    Attributes:
        parts: in the order of their names, which is that of a config's sections.
        interleaving: of the streams of `parts`, in this order.
    """

    def __init__(self, parts: Sequence[Part[Item]]):
        """Nothing is read.

        Raises:
            InputError: there is no part, or one without records.
        """
        if not parts:
            raise InputError("a mixture of no parts: expected at least one")
        ordered = sorted(parts, key=lambda part: part.name)
        for part in ordered:
            if not len(part.source):
                raise InputError(f"part {part.name} of the mixture is empty: it has no record")
        self._ends = list(itertools.accumulate(len(part.source) for part in ordered))
        firsts = [0, *self._ends]
        self.parts = tuple(
            replace(part, first=first) for part, first in zip(ordered, firsts, strict=False)
        )
        self.interleaving = Interleaving([part.weight for part in self.parts])
        self.readers = max(readers_of(part.source) for part in self.parts)

    def __len__(self) -> int:
        """The number of records of all parts, good and bad."""
        return self._ends[-1]

    def key(self, i: int) -> str:
        """The name of record `i`, that of its part before it."""
        part, number = self._place(i)
        return part.source.key(number)

    def __getitem__(self, i: int) -> Item:
        """Reads record `i`; raises as the source of its part does."""
        part, number = self._place(i)
        return part.source[number]

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of record `i`, of images; see `source.Captioned`."""
        part, number = self._place(i)
        source: Source[Any] = part.source
        return captions_of(source, number)

    def describe(self) -> str:
        """Each part, its share of the rows and its own description."""
        shares = zip(self.parts, self.interleaving.shares, strict=True)
        lines = [f"{part.name} ({share:.4g}): {described(part.source)}" for part, share in shares]
        return f"mixture of {len(lines)} by shares of the rows: {' | '.join(lines)}"

    def each(self, change: Callable[[Part[Item]], Source[Item]]) -> "Mixture[Item]":
        """The same mixture of other sources."""
        return Mixture([replace(part, source=change(part)) for part in self.parts])

    def _place(self, i: int) -> tuple[Part[Item], int]:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        part = self.parts[bisect.bisect_right(self._ends, i)]
        return part, i - part.first


class Named(Generic[Item]):
    """A source whose records have the name of a part before their own: "photos/1.png"."""

    def __init__(self, name: str, source: Source[Item]):
        """Nothing is read."""
        self._name, self._source = name, source
        self.readers = readers_of(source)

    def __len__(self) -> int:
        """The number of records, good and bad."""
        return len(self._source)

    def key(self, i: int) -> str:
        """The name of record `i`."""
        return f"{self._name}/{self._source.key(i)}"

    def describe(self) -> str:
        """The description of the source."""
        return described(self._source)

    def __getitem__(self, i: int) -> Any:
        """Reads record `i`; raises as the source does, under the name that it has here."""
        record: Any = self._named(lambda: self._source[i])
        return replace(record, key=f"{self._name}/{record.key}")

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of record `i`, of images; see `source.Captioned`."""
        source: Source[Any] = self._source
        return self._named(lambda: captions_of(source, i))

    def _named(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except BadRecord as bad:
            raise type(bad)(f"{self._name}/{bad.key}", bad.reason) from bad


def check_names(names: Collection[str], setting: str) -> None:
    """SettingError for the first of the names of parts that a flag could not name."""
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise SettingError(
                f"{setting} has a part {name!r}: expected a name of letters, digits and _ that does"
                " not begin with a digit, such as photos"
            )


def parts_of(source: Source[Item]) -> Sequence[Part[Item]]:
    """The parts of a mixture; any other source is its own only part, without a name."""
    return source.parts if isinstance(source, Mixture) else (Part("", 1.0, source),)


def in_turn(source: Source[Item]) -> Iterator[Item]:
    """Yields the readable records of a source, of a mixture one of each part in turn."""
    streams = [readable(part.source) for part in parts_of(source)]
    while streams:
        for stream in tuple(streams):
            try:
                yield next(stream)
            except StopIteration:
                streams.remove(stream)


def counts(parts: Sequence[Part[Any]], count: int) -> Mapping[str, int]:
    """How many of the first `count` rows of a stream are of each part, by name; at least one."""
    interleaving = Interleaving([part.weight for part in parts])
    found = dict.fromkeys((part.name for part in parts), 0)
    for place in range(count):
        found[parts[interleaving(place)[0]].name] += 1
    return {name: max(1, number) for name, number in found.items()}
