"""Reading a token store: pretokenized pairs on disk, any of them at any time."""

import json
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource

from cogview_jax.data.token_records import FORMAT, TokenRecord, decode_record
from cogview_jax.data.token_shards import MANIFEST, PLAN
from cogview_jax.runtime.errors import InputError


class TokenStore:
    """A finished store as a source of `TokenRecord`s; safe to read from many threads.

    Attributes:
        manifest: counts, shards with their hashes, the plan it was made by.
        meta: what its maker wrote down for readers: grid, codebook, hashes of the tokenizers.
    """

    def __init__(self, path: str | Path):
        """Opens the store and checks that its files are all there, by their sizes.

        Raises:
            InputError: no store, an unfinished or newer one, or a shard missing or cut short.
        """
        self._path = Path(path)
        manifest = self._path / MANIFEST
        if not manifest.exists():
            what = "unfinished" if (self._path / PLAN).exists() else "no token store"
            raise InputError(
                f"{path}: {what} ({MANIFEST} is missing); run prepare to make or finish it"
            )
        self.manifest = json.loads(manifest.read_text(encoding="utf-8"))
        if self.manifest["format"] != FORMAT:
            raise InputError(
                f"{path}: token store of format {self.manifest['format']}, expected {FORMAT};"
                " prepare it again"
            )
        self.meta = self.manifest["meta"]
        for shard in self.manifest["shards"]:
            _check_size(self._path / shard["file"], shard["bytes"])
        # With the counts in the names, no file is opened before it is needed.
        self._examples = ArrayRecordDataSource(
            [f"{self._path / s['file']}[0:{s['examples']}]" for s in self.manifest["shards"]]
        )

    def __len__(self) -> int:
        """The number of examples."""
        return len(self._examples)

    def describe(self) -> str:
        """Its examples, their captions, and the records that `prepare` could not use."""
        counts = {name: self.manifest.get(name, 0) for name in ("captions", "skipped")}
        return (
            f"{len(self):,} examples, {counts['captions']:,} captions in {self._path};"
            f" {counts['skipped']:,} records were skipped when it was prepared"
        )

    def key(self, i: int) -> str:
        """The name of the record that example `i` was made from."""
        return self[i].key

    def __getitem__(self, i: int) -> TokenRecord:
        """Reads example `i`.

        Raises:
            InputError: the file is damaged there.
        """
        try:
            return decode_record(self._examples[i])
        except RuntimeError as error:
            raise InputError(
                f"{self._path}: example {i} is damaged ({str(error).splitlines()[0]});"
                " expected the files that prepare wrote: prepare the store again"
            ) from error


def _check_size(path: Path, expected: int) -> None:
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise InputError(
            f"{path}: {size} bytes, expected {expected}: the shard is"
            f" {'cut short' if size else 'missing'}; copy it again or prepare the store again"
        )
