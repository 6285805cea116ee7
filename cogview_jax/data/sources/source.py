"""The interface of a source of records, and the section of a config that names one."""

import abc
import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from cogview_jax.data.images import MAX_PIXELS, MOST_PIXELS
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.remote.addresses import address_problem, is_address, shown
from cogview_jax.data.sources.kind_hint import kind_hint
from cogview_jax.runtime.config import SettingError, Tagged, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import named_by, require_paths

Item = TypeVar("Item", covariant=True)


@runtime_checkable
class Source(Protocol[Item]):
    """Records by index, in an order that never changes. Many threads may read at once."""

    def __len__(self) -> int:
        """Returns the number of records, good and bad."""

    def key(self, i: int) -> str:
        """Returns the name of record `i` without reading it."""

    def __getitem__(self, i: int) -> Item:
        """Reads record `i`.

        Raises:
            BadRecord: the record cannot be used.
            SystemFault: the machine cannot read it.
        """


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Tagged, abc.ABC):
    """Where captioned images come from: the section `data.source` of a config.

    Each kind of source is a subclass with its own settings and an `open` method, and one file in
    this folder. Defining the subclass is enough to make its `kind` known to configs; those that
    come with the package are imported by `cogview_jax.data.sources`.

    Attributes:
        kind: the kind of the source. A subclass fixes it as a `Literal`.
        require_captions: a record without a caption is bad. An image tokenizer needs none.
        max_pixels: an image with more pixels is bad. It is not decoded, so this bounds the memory
            that one image takes.
    """

    kind: str
    require_captions: bool = True
    max_pixels: int = MAX_PIXELS

    def __post_init__(self):
        require_range(self, "max_pixels", at_least=1, at_most=MOST_PIXELS)

    @abc.abstractmethod
    def open(self) -> Source[Record]:
        """Opens the source. Some kinds make their data first.

        Raises:
            InputError: a setting does not fit the data, or there are none.
            SystemFault: the machine cannot read the data.
        """


def require_reachable(settings: SourceConfig, *names: str) -> None:
    """SettingError unless the fields `names` are local paths or addresses, or empty."""
    for name in names:
        value = getattr(settings, name)
        if not is_address(value):
            require_paths(settings, name)
        elif problem := address_problem(value):
            raise SettingError(f"{name} = {shown(value)!r}: {problem}")


def require_local(settings: SourceConfig, *names: str) -> None:
    """SettingError unless the fields `names` of a kind that reads no addresses are local paths."""
    for name in names:
        value = getattr(settings, name)
        if any(map(is_address, value.split(","))):
            kinds = sorted(name for name, kind in SourceConfig.kinds.items() if _is_remote(kind))
            raise SettingError(
                f"{name} = {value!r}: expected the path of a mounted file system, since kind"
                f" {settings.kind!r} reads no addresses: mount it, or copy it; kinds that do are"
                f" {', '.join(kinds)}"
            )
    require_paths(settings, *names)


def _is_remote(kind: type) -> bool:
    return hasattr(kind, "remote")


def opened(config: SourceConfig, run: str = "") -> Source[Record]:
    """What `config.open` gives; errors name data.source.path where there is nothing at it.

    They also name the kind that reads what is there, if another does. `run` is what `data.from`
    says: the path may be that of this run.
    """
    path = getattr(config, "path", "")
    name = "data.source.path" + f" (perhaps that of the run in data.from, {run})" * bool(run)
    missing = path and not os.path.exists(path)
    try:
        with named_by(name, path) if missing else contextlib.nullcontext():
            return config.open()
    except InputError as error:
        hint = kind_hint(path, config.kind) if path else ""
        if not hint:
            raise
        raise InputError(f"{error}{hint}") from error


def readers_of(source: object) -> int:
    """How many records of a source are best read at a time.

    More than 1 where each is waited for, as on another machine; such a source says so as `readers`.
    """
    return getattr(source, "readers", 1)


@runtime_checkable
class Captioned(Protocol):
    """A source that can read the captions of a record without its image."""

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of record `i`; raises as reading the record does, but for its image."""


def captions_of(source: Source[Record], i: int) -> tuple[str, ...]:
    """The captions of record `i`, without decoding its image where the source can do that.

    Raises:
        BadRecord: the record has no captions that can be used; where the whole record has to be
            read, also: it cannot be used.
        SystemFault: the machine cannot read it.
    """
    return source.captions(i) if isinstance(source, Captioned) else source[i].captions


@runtime_checkable
class Described(Protocol):
    """A source that can describe itself."""

    def describe(self) -> str:
        """Its records and captions, and the files that it ignores, in one line."""


def described(source: Source) -> str:
    """The records of a source, in one line."""
    return source.describe() if isinstance(source, Described) else f"{len(source):,} records"


#: Names of records that stand for all of a source.
_NAMES = 10_000


def listing(source: Source) -> str:
    """The SHA-256 of the number of records and the names of some, evenly spread; none is read.

    Two sources of the same one have the same records in the same order, wherever they lie, as far
    as their names tell.
    """
    count = len(source)
    names = [source.key(i) for i in range(0, count, -(-count // _NAMES) or 1)]
    lines = "\n".join([str(count), *names])
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def readable(source: Source[Item]) -> Iterator[Item]:
    """Yields the records of a source in their order. Bad records are left out."""
    for i in range(len(source)):
        with contextlib.suppress(BadRecord):
            record = source[i]
            yield record
