"""Reading a token store: pretokenized pairs on disk, any of them at any time."""

import bisect
import itertools
import operator
import stat
import threading
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

from cogview_jax.data.token_records import RecordLocation, TokenRecord, decode_record
from cogview_jax.data.token_shards import MANIFEST, PLAN, read_manifest, store_bytes
from cogview_jax.runtime.errors import InputError, SystemFault
from cogview_jax.runtime.faults import raise_faults, retried
from cogview_jax.runtime.paths import inside

#: Records are read at random: nothing is read ahead.
_OPTIONS = {"options": "readahead_buffer_size:0", "file_reader_buffer_size": 32_768}


class TokenStore:
    """A finished store as a source of `TokenRecord`s; safe to read from many threads.

    Opening it looks at the sizes of the files alone, so that a store of millions is open at once.
    That a file is the right one is told by its records, each of which says where it belongs; that a
    record is whole, by its checksum.

    Attributes:
        manifest: counts, shards with their hashes, the plan it was made by.
        meta: what its maker wrote down for readers: grid, codebook, hashes of the tokenizers.
    """

    def __init__(self, path: str | Path):
        """Opens the store and checks that its files are all there, by their sizes.

        Raises:
            InputError: no store, an unfinished or newer one, a manifest that is damaged or names
                files outside the store, or a shard missing or cut short.
        """
        self._path = Path(path)
        manifest = self._path / MANIFEST
        if not manifest.exists():
            what = "unfinished" if (self._path / PLAN).exists() else "no token store"
            raise InputError(
                f"{path}: {what} ({MANIFEST} is missing); run prepare to make or finish it"
            )
        self.manifest, described = read_manifest(manifest)
        self.meta, self._store = described.meta, store_bytes(described.store)
        self._shards = described.shards
        self._files = [inside(self._path, shard.file) for shard in self._shards]
        for file, shard in zip(self._files, self._shards, strict=True):
            _check_size(file, shard.bytes)
        self._ends = list(itertools.accumulate(shard.examples for shard in self._shards))
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of examples."""
        return self._ends[-1] if self._ends else 0

    def describe(self) -> str:
        """Its examples, their captions, and the records that `prepare` could not use."""
        counts = {name: self.manifest.get(name, 0) for name in ("captions", "skipped")}
        views = self.meta.get("views", 1)
        of_each = f", {views} of each image" if views > 1 else ""
        return (
            f"{len(self):,} examples{of_each}, {counts['captions']:,} captions in {self._path};"
            f" {counts['skipped'] // views:,} records were skipped when it was prepared"
        )

    def key(self, i: int) -> str:
        """The name of the record that example `i` was made from."""
        return self[i].key

    def __getitem__(self, i: int) -> TokenRecord:
        """Reads example `i`.

        Raises:
            InputError: the file is damaged there, or is another than prepare wrote.
            IndexError: there is no such example.
            SystemFault: the machine cannot read the file, and could not when it was tried again.
        """
        i = operator.index(i)
        if not 0 <= i < len(self):
            raise IndexError(f"example {i} of {len(self)}")
        shard = bisect.bisect_right(self._ends, i)
        index = i - (self._ends[shard] - self._shards[shard].examples)
        place = None if self._store is None else RecordLocation(self._store, shard, index)
        file = self._files[shard]
        try:
            data = retried(lambda: self._read(shard, index), str(file))
            return decode_record(data, place)
        except SystemFault:
            raise
        except (InputError, RuntimeError) as error:
            raise InputError(
                f"{file}: example {i} is damaged ({str(error).splitlines()[0]});"
                " expected the files that prepare wrote: prepare the store again"
            ) from error

    def _read(self, shard: int, index: int) -> bytes:
        try:
            return raise_faults(lambda: self._reader(shard).read([index])[0])
        except OSError:
            with self._lock:  # a reader that has failed once may go on failing
                self._readers.pop(shard, None)
            raise

    def _reader(self, shard: int) -> ArrayRecordReader:
        """The open file of a shard, once it is known to hold what the manifest says."""
        with self._lock:
            if shard in self._readers:
                return self._readers[shard]
            reader = ArrayRecordReader(str(self._files[shard]), **_OPTIONS)
            if not reader.ok():
                reader.read([0])  # says why it could not be opened
            if reader.num_records() != self._shards[shard].examples:
                raise InputError(
                    f"the file has {reader.num_records()} examples, but the manifest says"
                    f" {self._shards[shard].examples}"
                )
            self._readers[shard] = reader
            return reader


def _check_size(path: Path, expected: int) -> None:
    """Refuses a file of another size, or what is no file: a pipe would be waited for."""
    size = 0
    if path.exists():
        status = retried(path.stat, str(path))
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    if not size or size != expected:
        raise InputError(
            f"{path}: {size} bytes, expected {expected}: the shard is"
            f" {'cut short' if size else 'missing'}; copy it again or prepare the store again"
        )
