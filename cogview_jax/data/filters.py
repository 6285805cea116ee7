"""Filters: which records of a source are used, by their names, sizes and captions."""

import hashlib
from dataclasses import asdict, dataclass, fields, replace

from cogview_jax.data.records import FilteredRecord, Record, printable
from cogview_jax.data.sources.mixture import Mixture
from cogview_jax.data.sources.source import Source, captions_of, described, readers_of
from cogview_jax.runtime.config import SettingError, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import read_regular, text_lines
from cogview_jax.runtime.paths import named_by, require_paths

#: Bytes of a file of names that are read.
EXCLUDE_LIMIT = 4 << 30


@dataclass(frozen=True)
class FilterConfig:
    """Which records are left out though nothing is wrong with them; `cogview survey` counts them.

    They do not count as skipped: `max_skipped` is about records that cannot be read.

    Attributes:
        min_side: an image whose shorter side has fewer pixels is left out.
        max_aspect: an image whose longer side is more than so many times the shorter one is left
            out; 0 for none.
        min_caption: a caption of fewer characters is left out, and a record with it whose captions
            all are.
        max_caption: the same for a caption of more characters; 0 for none.
        exclude: a text file with the name of a record a line, as `skipped.jsonl` has it: these are
            left out, unread. `cogview survey` writes such files of duplicates.
    """

    min_side: int = 0
    max_aspect: float = 0.0
    min_caption: int = 0
    max_caption: int = 0
    exclude: str = ""

    def __post_init__(self):
        require_range(self, "min_side", "min_caption", "max_caption", at_least=0, at_most=2**20)
        require_range(self, "max_aspect", at_least=0, at_most=2**20)
        require_paths(self, "exclude")
        if 0 < self.max_aspect < 1:
            raise SettingError(
                f"max_aspect = {self.max_aspect}: expected 0 for any, or at least 1: the longer"
                " side over the shorter one"
            )
        if 0 < self.max_caption < self.min_caption:
            raise SettingError(
                f"max_caption = {self.max_caption}: expected 0 for any, or at least min_caption ="
                f" {self.min_caption}"
            )

    def plan(self) -> dict[str, object]:
        """What a token store depends on: the settings that are set; of `exclude` its SHA-256."""
        changed = {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }
        if self.exclude:
            changed["exclude"] = hashlib.sha256(_excluded_bytes(self.exclude)).hexdigest()
        return changed


def filtered(source: Source[Record], config: FilterConfig) -> Source[Record]:
    """`source`, whose records that the filters leave out are raised as `FilteredRecord`.

    Without a filter it is the source itself. Of a mixture each part is filtered.

    Raises:
        InputError: the file of names cannot be read.
    """
    if config == FilterConfig():
        return source
    if isinstance(source, Mixture):
        return source.each(lambda part: FilteredSource(part.source, config))
    return FilteredSource(source, config)


class FilteredSource:
    """A source with filters, which has the same number of records under the same names."""

    def __init__(self, source: Source[Record], config: FilterConfig):
        """Reads the file of names, and no record; raises as `filtered`."""
        self._source, self._config = source, config
        self.readers = readers_of(source)
        self._excluded = _excluded(config.exclude)

    def __len__(self) -> int:
        """The number of records, also of those that are left out."""
        return len(self._source)

    def key(self, i: int) -> str:
        """The name of record `i`."""
        return self._source.key(i)

    def describe(self) -> str:
        """The description of the source, and the filters."""
        settings = asdict(self._config)
        shown = ", ".join(f"{name} = {value}" for name, value in settings.items() if value)
        return f"{described(self._source)}; filtered by {shown}"

    def __getitem__(self, i: int) -> Record:
        """Reads record `i`.

        Raises:
            FilteredRecord: a filter leaves it out.
            BadRecord, SystemFault: as the source does.
        """
        self._check_name(i)
        record = self._source[i]
        shorter, longer = sorted(record.image.shape[:2])
        config = self._config
        if shorter < config.min_side:
            raise FilteredRecord(
                record.key, f"shorter side of {shorter} pixels, below {config.min_side} (min_side)"
            )
        if config.max_aspect and longer > config.max_aspect * shorter:
            raise FilteredRecord(
                record.key,
                f"sides of {longer} and {shorter} pixels, more than {config.max_aspect:g} : 1"
                " (max_aspect)",
            )
        return replace(record, captions=self._kept(record.key, record.captions))

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of record `i`, whose image is read if its size counts; raises as reading."""
        if self._config.min_side or self._config.max_aspect:
            return self[i].captions
        self._check_name(i)
        return self._kept(self.key(i), captions_of(self._source, i))

    def _check_name(self, i: int) -> None:
        if self._excluded and printable(self.key(i)) in self._excluded:
            raise FilteredRecord(self.key(i), f"named in {self._config.exclude} (exclude)")

    def _kept(self, key: str, captions: tuple[str, ...]) -> tuple[str, ...]:
        """Those of a length that is asked for."""
        least, most = self._config.min_caption, self._config.max_caption
        kept = tuple(
            text for text in captions if len(text) >= least and (not most or len(text) <= most)
        )
        if captions and not kept:
            length = len(captions[0])
            few = length < least
            raise FilteredRecord(
                key,
                f"caption of {length} characters,"
                f" {f'below {least} (min_caption)' if few else f'above {most} (max_caption)'}",
            )
        return kept


def _excluded(path: str) -> frozenset[str]:
    if not path:
        return frozenset()
    with named_by("data.filter.exclude", path):
        try:
            return frozenset(line for line in text_lines(_excluded_bytes(path)) if line)
        except ValueError as error:
            raise InputError(f"expected a text file with a name a line: {error}") from None


def _excluded_bytes(path: str) -> bytes:
    with named_by("data.filter.exclude", path):
        try:
            return retried(lambda: read_regular(path, EXCLUDE_LIMIT), path)
        except OSError as error:
            raise InputError(f"expected a file with a name a line: {reason(error)}") from None
