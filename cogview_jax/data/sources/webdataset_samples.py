"""Finds the samples in a tar: entries in a row that have one key.

Keys are those of the webdataset library: the name of an entry, up to the first dot of what stands
behind its last slash; the rest, in small letters, says what the entry holds. Entries of one key
that do not stand together are two samples.
"""

import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from cogview_jax.data.ignored import Ignored
from cogview_jax.data.images import FILE_LIMIT, SUFFIXES
from cogview_jax.data.record_index_writer import IndexPart
from cogview_jax.data.records import BadRecord, clean_captions, printable
from cogview_jax.data.sources.tar_entries import Entry, TarFile

#: A text file, and what holds captions where no keys are given: the text, else this field of .json.
TEXT, USUAL_FIELD = "txt", "caption"
#: The most bytes of a .txt or .json.
TEXT_LIMIT = 1 << 20
#: The fields of the first .json, under this name in the notes of an index, in so many letters.
FIELDS, _NAMED = "fields", 300
#: Counts of an index: samples whose key stood before in their tar, and tars that lack the empty
#: blocks behind the last entry.
REPEATED, UNENDED = "repeated", "unended"


@dataclass
class Sample:
    """Entries of one key, by what stands behind it, and the bytes of texts among them."""

    key: str
    entries: dict[str, Entry] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleScan:
    """Adds the samples of a tar to the part of an index; see `WebDataset` for its settings."""

    image_key: str = ""
    caption_keys: tuple[str, ...] = ()

    def __call__(self, path: str, part: IndexPart) -> None:
        """Scans the tar at `path`; raises as `TarFile.entries` does."""
        with TarFile(path) as tar:
            keys = array("q")
            for sample in samples(tar, part.findings.ignored):
                keys.append(hash(sample.key))
                self._add(sample, part)
        part.findings.counts[REPEATED] += len(keys) - len(np.unique(keys))
        if not tar.ended:
            part.findings.counts[UNENDED] += 1
            part.findings.notes.setdefault(UNENDED, os.path.basename(path))

    def _add(self, sample: Sample, part: IndexPart) -> None:
        image = self._image(sample)
        if image is None:
            named = f" .{self.image_key}" if self.image_key else ""
            part.findings.ignored.add(f"samples without an image{named}", sample.key)
        elif not 0 < image.size <= FILE_LIMIT:
            expected = f"expected 1 to {FILE_LIMIT}"
            part.add_bad(sample.key, f"image of {image.size} bytes: {expected}")
        else:
            try:
                texts = self._texts(sample, part)
                captions = clean_captions(texts, sample.key, required=False)
            except BadRecord as error:
                part.add_bad(sample.key, error.reason)
            else:
                part.add(sample.key, captions, image.offset, image.size)

    def _image(self, sample: Sample) -> Entry | None:
        if self.image_key:
            return sample.entries.get(self.image_key.lower())
        images = (
            entry
            for ending, entry in sample.entries.items()
            if f".{ending.rpartition('.')[2]}" in SUFFIXES
        )
        return next(images, None)

    def _texts(self, sample: Sample, part: IndexPart) -> list[str]:
        """The captions of a sample as they are; BadRecord if they cannot be read."""
        usual = TEXT if TEXT in sample.entries else USUAL_FIELD
        found: list[str] = []
        fields: dict | None = None
        for key in self.caption_keys or (usual,):
            if key == TEXT:
                found.append(_decoded(sample, TEXT) if TEXT in sample.entries else "")
                continue
            if fields is None:
                fields = _fields(sample)
                if FIELDS not in part.findings.notes:
                    part.findings.notes[FIELDS] = printable(", ".join(fields))[:_NAMED]
            value = fields.get(key)
            texts = value if isinstance(value, list) else [] if value is None else [value]
            if not all(isinstance(text, str) for text in texts):
                reason = f"{key!r} of .json: expected a text or a list of texts"
                raise BadRecord(sample.key, reason)
            found += texts
        return found


def samples(tar: TarFile, ignored: Ignored) -> Iterator[Sample]:
    """Yields the samples of a tar in their order, and counts entries that belong to none."""
    sample = None
    for entry in tar.entries():
        reason = entry.kind or _foreign(entry.name)
        if reason:
            if reason != "folders":
                ignored.add(reason, entry.name)
            continue
        begin = entry.name.index(".", entry.name.rfind("/") + 1)
        key, ending = entry.name[:begin], entry.name[begin + 1 :].lower()
        if sample is None or sample.key != key:
            if sample is not None:
                yield sample
            sample = Sample(key)
        if ending in sample.entries:
            ignored.add("that a sample has already", entry.name)
            continue
        sample.entries[ending] = entry
        if ending in (TEXT, "json") and entry.size <= TEXT_LIMIT:
            sample.texts[ending] = tar.read(entry.offset, entry.size)
    if sample is not None:
        yield sample


def _foreign(name: str) -> str:
    """Why an entry belongs to no sample, by its name; empty if it belongs to one."""
    first = name.partition("/")[0]
    if len(first) > 4 and first.startswith("__") and first.endswith("__"):
        return "about the set (__NAME__)"
    last = name.rpartition("/")[2]
    if last.startswith("."):
        return "hidden"
    return "" if "." in last else "without an ending"


def _decoded(sample: Sample, ending: str) -> str:
    if ending not in sample.texts:
        size = sample.entries[ending].size
        reason = f".{ending} of {size} bytes: expected at most {TEXT_LIMIT}"
        raise BadRecord(sample.key, reason)
    try:
        return sample.texts[ending].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRecord(sample.key, f".{ending} is not UTF-8") from None


def _fields(sample: Sample) -> dict:
    """The object in the .json of a sample; empty where it has none."""
    if "json" not in sample.entries:
        return {}
    text = _decoded(sample, "json")
    try:
        found = json.loads(text)
    except RecursionError:
        raise BadRecord(sample.key, ".json is nested too deeply") from None
    except ValueError as error:
        raise BadRecord(sample.key, f".json cannot be read: {error}") from None
    if not isinstance(found, dict):
        reason = f".json holds a {type(found).__name__}: expected an object"
        raise BadRecord(sample.key, reason)
    return found
