"""What sources of tables have in common: their settings' checks, their index and its messages."""

import importlib.util
from collections.abc import Sequence
from typing import Any

from cogview_jax.data.record_index import CAPTIONED
from cogview_jax.data.remote.reader import RemoteReader
from cogview_jax.data.sources.data_files import DataFiles
from cogview_jax.data.sources.indexed_source import IndexedSource, index_of
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError


def require_pyarrow(kind: str) -> None:
    """InputError unless pyarrow is installed, which reads the tables of a kind of source."""
    if importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"data.source.kind = {kind!r} needs pyarrow: install it with"
            " `pip install 'cogview-jax[arrow]'`"
        )


class TableSource(IndexedSource):
    """The rows of some tables, in the order of the files and of their rows."""

    def __init__(
        self,
        config: Any,
        files: DataFiles,
        scan: Any,
        unit: str,
        reader: RemoteReader | None = None,
    ):
        """Opens the index of the tables, or makes it.

        Args:
            config: the settings: kind, path, caption_keys, index and those of every source.
            files: the tables.
            scan: finds the rows of one; a dataclass.
            unit: what a table is called in messages.
            reader: reads tables on another machine.

        Raises:
            InputError: a table is damaged or lacks a column, or no row can be used.
            SystemFault: the machine cannot read them.
        """
        index = index_of(config, files, scan, unit, reader)
        super().__init__(config, index, files.ignored, reader)
        self._unit = unit
        self._check(config.path, config.caption_keys)

    def describe(self) -> str:
        """Returns one line: how many records there are, and what is not among them."""
        return f"{self._counted(self._unit)}; {self._ignored}"

    def _check(self, path: str, caption_keys: Sequence[str]) -> None:
        from cogview_jax.data.sources.table_columns import COLUMNS, USUAL_CAPTIONS

        counts, notes = self._index.counts, self._index.notes
        given = f"path={path!r}: "
        tables = counted(len(self._index.files), self._unit)
        if not len(self):
            raise InputError(f"{given}no row in {tables}; {self._ignored}")
        self._check_usable(given)
        if self._config.require_captions and not counts[CAPTIONED]:
            wanted = ", ".join(caption_keys) or f"one of {', '.join(USUAL_CAPTIONS)}"
            there = notes.get(COLUMNS)
            raise InputError(
                f"{given}{counted(len(self), 'image')} and no caption: expected {wanted} in each"
                " row" + (f"; columns are {there} (data.source.caption_keys)" if there else "")
            )
