"""What a path that a source cannot read seems to be: the kind of source that reads it."""

import glob
import itertools
import os
from collections import deque
from collections.abc import Iterator

from cogview_jax.data.images import SUFFIXES
from cogview_jax.data.remote.addresses import without_query
from cogview_jax.data.sources.file_patterns import expanded, is_pattern
from cogview_jax.data.sources.listing_files import LISTINGS

#: How the files of a kind end, the kind first that tells most.
_ENDINGS = {
    "coco": (),
    "lmdb": (".mdb", ".lmdb"),
    "tfds": ("features.json",),
    "arrow": (".arrow",),
    "parquet": (".parquet",),
    "webdataset": (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst"),
    "folder": (*SUFFIXES, *LISTINGS),
}
_CAPTIONS, _JSON = "captions_", ".json"
#: Folders that are looked at, and entries of each.
_FOLDERS, _ENTRIES = 100, 1000


def kind_hint(path: str, kind: str) -> str:
    """The end of an error's line that names the kind to choose; empty where none is known.

    Args:
        path: as settings name data: a file, a folder, a pattern, an address, or several. Of folders
            some entries are looked at, and some of those below; of addresses the names alone.
        kind: the kind that was chosen. Where it has files of its own no other is named, but for
            "folder": other kinds have images, too, beside their files.
    """
    found: dict[str, str] = {}
    for name in _names(path):
        if seen := _kind_of(name):
            found[seen] = min(name, found.get(seen, name))
    if kind in found and kind != "folder":
        return ""
    for other in _ENDINGS:
        if other in found and other != kind:
            return f"; {found[other]} is of another kind: --config.data.source.kind={other}"
    return _prepared_hint(path)


def _kind_of(name: str) -> str:
    if name.startswith(_CAPTIONS) and name.endswith(_JSON):
        return "coco"
    return next((kind for kind, ends in _ENDINGS.items() if name.lower().endswith(ends)), "")


def _prepared_hint(path: str) -> str:
    """A hint where `path` is no path but the name of a data set in the usual folder of TFDS."""
    usual = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
    folder = os.path.join(os.path.expanduser(usual), path.partition(":")[0])
    if os.path.isabs(path) or not path or os.path.exists(path) or not os.path.isdir(folder):
        return ""
    named = f"--config.data.source.name={path} --config.data.source.path="
    return f"; {folder} is of another kind: --config.data.source.kind=tfds {named}"


def _names(path: str) -> Iterator[str]:
    for part in expanded(path)[:_ENTRIES]:
        if os.path.isdir(part):
            yield from _below(part)
        else:
            yield os.path.basename(without_query(part))
            if is_pattern(part):
                matches = glob.iglob(part, recursive=True)
                yield from map(os.path.basename, itertools.islice(matches, _ENTRIES))


def _below(folder: str) -> Iterator[str]:
    """Yields names of files in a folder and then of those below."""
    folders = deque([folder])
    for _ in range(_FOLDERS):
        if not folders:
            return
        try:
            with os.scandir(folders.popleft()) as entries:
                for entry in itertools.islice(entries, _ENTRIES):
                    if entry.is_dir():
                        folders.append(entry.path)
                    else:
                        yield entry.name
        except OSError:
            continue
