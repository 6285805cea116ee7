"""What a path that a source cannot read seems to be: the kind of source that reads it."""

import os

#: How the files of other kinds end, or what they are called.
_ENDINGS = {".mdb": "lmdb", ".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow"}
_CAPTIONS, _JSON = "captions_", ".json"
#: Entries of a folder that are looked at.
_MOST = 1000


def kind_hint(path: str) -> str:
    """The end of an error's line that names the kind to choose; empty where none is known.

    Args:
        path: a local file, or a folder, of which some entries and those of its `annotations` are
            looked at.
    """
    names = [os.path.basename(path)] if os.path.isfile(path) else _entries(path)
    names += _entries(os.path.join(path, "annotations"))
    for name in sorted(names):
        kind = _ENDINGS.get(os.path.splitext(name)[1], "")
        if name.startswith(_CAPTIONS) and name.endswith(_JSON):
            kind = "coco"
        if kind:
            return f"; {name} is of another kind: --config.data.source.kind={kind}"
    return ""


def _entries(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for _, entry in zip(range(_MOST), entries, strict=False)]
    except OSError:
        return []
