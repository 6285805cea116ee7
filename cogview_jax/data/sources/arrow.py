"""Reads folders that datasets wrote with save_to_disk: `data.source.kind = "arrow"`."""

import os
from dataclasses import dataclass
from typing import Any, Literal

from cogview_jax.data.records import Record
from cogview_jax.data.sources.data_files import DataFiles, find_files, require_files
from cogview_jax.data.sources.source import Source, SourceConfig, require_local
from cogview_jax.data.sources.tables import TableSource, require_pyarrow
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import reason, retried
from cogview_jax.runtime.files import read_json

#: What save_to_disk writes of a set with splits, and of each split.
_SPLITS, _STATE = "dataset_dict.json", "state.json"


@dataclass(frozen=True, kw_only=True)
class Arrow(SourceConfig):
    """The settings of a data set that Hugging Face's datasets saved with `save_to_disk`.

    Where each image lies is written to an index once, beside the files or, where that cannot be, in
    the user's cache. This needs the extra [arrow].

    Attributes:
        kind: "arrow".
        path: the folder that was saved; or Arrow files, as the path of kind "parquet" names such.
        split: which split, where the folder has several.
        image_key: see `Parquet`.
        caption_keys: see `Parquet`.
        index: the folder for the index. If it is empty, the index lies beside the files.
    """

    kind: Literal["arrow"] = "arrow"
    path: str = ""
    split: str = "train"
    image_key: str = ""
    caption_keys: tuple[str, ...] = ()
    index: str = ""

    def __post_init__(self):
        super().__post_init__()
        require_local(self, "path", "index")
        require_files(self)

    def open(self) -> Source[Record]:
        """Opens the index and makes it first if needed; see `SourceConfig.open`."""
        if not self.path:
            raise InputError(
                "data.source.path is empty: name the folder that save_to_disk of datasets wrote,"
                " such as --config.data.source.path=my_set"
            )
        require_pyarrow(self.kind)
        # pyarrow is imported only here, since few sources need it.
        from cogview_jax.data.sources.arrow_scan import ArrowScan

        scan = ArrowScan(self.image_key, self.caption_keys)
        return TableSource(self, _files(self), scan, "Arrow file")


def _files(config: Arrow) -> DataFiles:
    """The Arrow files of a split, once it is known that none is missing."""
    folder = config.path
    if description := _described(folder, _SPLITS):
        splits = description.get("splits")
        if not isinstance(splits, list) or config.split not in splits:
            choices = ", ".join(map(str, splits)) if isinstance(splits, list) else "none"
            raise InputError(f"split={config.split!r}: choices for {folder} are {choices}")
        # A description may name folders elsewhere; the setting is the user's own word.
        folder = os.path.join(folder, config.split)
    files = find_files(folder, "Arrow files", ".arrow")
    named = _described(folder, _STATE).get("_data_files")
    for entry in named if isinstance(named, list) else ():
        name = entry.get("filename") if isinstance(entry, dict) else None
        if isinstance(name, str) and name not in files.names:
            raise InputError(f"{folder}: {name!r} is missing, which {_STATE} names")
    return files


def _described(folder: str, name: str) -> dict[str, Any]:
    """The object in a file of a folder; empty where there is none."""
    path = os.path.join(folder, name)
    try:
        found = retried(lambda: read_json(path), path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged: expected a JSON object")
    return found
