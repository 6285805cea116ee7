"""Finds the images and captions of an LMDB, which the package lmdb reads.

A record is a key that names an image. Which do, and where captions stand, is told by patterns with
a `*` for the record's name, or by how others call their keys:

    image-000000001, label-000000001    images and texts, as sets for reading text in images have
    imgs/data.mdb, pairs/data.mdb       images in base64, and pairs of their keys and texts, as
                                        Chinese-CLIP writes them
    anything else                       images alone, as LSUN has them
"""

import base64
import binascii
import itertools
import json
import os
import pickletools
from collections.abc import Callable
from dataclasses import dataclass

from cogview_jax.data.images import decode_image
from cogview_jax.data.lmdb_file import DATA, LmdbFile, opened
from cogview_jax.data.record_index import NO_PLACE, stamp_of
from cogview_jax.data.record_index_writer import IndexPart
from cogview_jax.data.records import BadRecord, clean_captions, printable
from cogview_jax.runtime.errors import InputError

#: Folders of a set that Chinese-CLIP wrote.
IMAGES, PAIRS = "imgs", "pairs"
#: Keys that tell how many records there are, of which the first two are read.
_PAIRS_COUNT, _LENGTH = b"num_samples", b"length"
_COUNTS = {_PAIRS_COUNT, _LENGTH, b"num-samples", b"num_images", b"__len__", b"__keys__"}
#: Keys of images, and of texts where images are called by the first of these.
_IMAGES, _ALL = "image-*", "*"
_TEXTS = ("label-*", "caption-*", "text-*")
#: Digits of a number of pairs.
_DIGITS = 18
#: The most bytes of a text; images that are looked at first.
_TEXT_LIMIT, _FIRST = 1 << 20, 8
#: How pickles begin. Those of tuples of numbers and texts are made of values and what joins them.
_PICKLE = b"\x80"
_VALUES = {"SHORT_BINUNICODE", "BINUNICODE", "UNICODE", "BININT", "BININT1", "BININT2", "LONG1"}
_JOINTS = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "MARK", "TUPLE", "TUPLE3", "STOP"}


@dataclass(frozen=True)
class KeyPattern:
    """The keys that have a beginning and an end; what stands between is the name of a record."""

    before: bytes
    after: bytes

    @classmethod
    def of(cls, text: str) -> "KeyPattern":
        """The pattern in a text with one `*`."""
        before, _, after = text.encode().partition(b"*")
        return cls(before, after)

    def key(self, name: str) -> bytes:
        """The key of a record."""
        return self.before + name.encode() + self.after

    def name(self, key: bytes) -> bytes:
        """The name of the record that a key belongs to; empty for other keys."""
        fits = len(key) > len(self.before + self.after)
        fits = fits and key.startswith(self.before) and key.endswith(self.after)
        return key[len(self.before) : len(key) - len(self.after)] if fits else b""


@dataclass(frozen=True)
class LmdbScan:
    """Adds the images of an LMDB to the part of an index; see `Lmdb` for its settings."""

    image_key: str = ""
    caption_key: str = ""

    def __call__(self, path: str, part: IndexPart) -> None:
        """Scans the LMDB in the file at `path`.

        Raises:
            InputError: it is no LMDB, or holds no images.
            SystemFault: the machine cannot read it.
        """
        file = opened(path)
        if pairs := pairs_of(path):
            part.watch(os.path.join(PAIRS, DATA), stamp_of(pairs))
            paired = _paired_texts(opened(pairs), part)
            images = image_pattern(file, "")
            _add(path, file, part, images, None, lambda name: paired.get(name, []))
            return
        images = image_pattern(file, self.image_key)
        texts = self._texts(file, images)
        _add(path, file, part, images, texts, lambda name: _read_texts(file, texts, name))

    def _texts(self, file: LmdbFile, images: KeyPattern) -> KeyPattern | None:
        """The keys of texts; None where there are none."""
        if self.caption_key:
            return KeyPattern.of(self.caption_key)
        if images != KeyPattern.of(_IMAGES):
            return None
        names = filter(None, map(images.name, file.keys_from(images.before)))
        first = next(names, b"").decode(errors="replace")
        usual = (KeyPattern.of(text) for text in _TEXTS)
        return next((each for each in usual if file.get(each.key(first)) is not None), None)


def image_pattern(file: LmdbFile, image_key: str) -> KeyPattern:
    """The keys of images of an LMDB, by the setting or, if that is empty, by those it has."""
    usual = KeyPattern.of(_IMAGES)
    if image_key or not any(map(usual.name, itertools.islice(file.keys_from(usual.before), 1))):
        return KeyPattern.of(image_key or _ALL)
    return usual


def decoded_value(path: str, value: bytes, key: str) -> bytes:
    """The encoded image that is the value of a key in the LMDB at a path.

    Raises:
        BadRecord: it is no base64 where the LMDB has that; `key` names the record.
    """
    if not pairs_of(path):
        return value
    try:
        return base64.b64decode(value.translate(bytes.maketrans(b"-_", b"+/")), validate=True)
    except binascii.Error:
        raise BadRecord(key, "its value is no base64") from None


def pairs_of(path: str) -> str:
    """The LMDB of pairs beside the LMDB of images at a path; empty where there is none."""
    folder, name = os.path.split(path)
    above, last = os.path.split(folder)
    pairs = os.path.join(above, PAIRS, DATA)
    return pairs if (last, name) == (IMAGES, DATA) and os.path.exists(pairs) else ""


def _add(
    path: str,
    file: LmdbFile,
    part: IndexPart,
    images: KeyPattern,
    texts: KeyPattern | None,
    captions_of: Callable[[str], list[str]],
) -> None:
    """Adds all images of an LMDB, once it is known that those that come first are some."""
    _require_images(path, file, images, texts)
    for key, place in file.places():
        name = _image_name(key, images, texts)
        if not name:
            if key not in _COUNTS and not (texts and texts.name(key)):
                part.findings.ignored.add("keys that name no image", repr(key)[2:-1])
            continue
        try:
            text = name.decode()
            if printable(text) != text or "\0" in text:
                raise ValueError
        except ValueError:
            part.add_bad(repr(key)[2:-1], "its key is no line of text")
            continue
        try:
            captions = clean_captions(captions_of(text), text, required=False)
        except BadRecord as error:
            part.add_bad(text, error.reason)
        else:
            part.add(text, captions, *(place or (0, NO_PLACE)))


def _image_name(key: bytes, images: KeyPattern, texts: KeyPattern | None) -> bytes:
    is_other = key in _COUNTS or (texts is not None and bool(texts.name(key)))
    return b"" if is_other else images.name(key)


def _require_images(
    path: str, file: LmdbFile, images: KeyPattern, texts: KeyPattern | None
) -> None:
    """InputError where none of the first images of an LMDB is one."""
    keys = (key for key in file.keys_from() if _image_name(key, images, texts))
    first = {key: file.get(key) or b"" for key in itertools.islice(keys, _FIRST)}
    reasons = []
    for key, value in first.items():
        name = repr(key)[2:-1]
        try:
            decode_image(decoded_value(path, value, name), name)
        except BadRecord as error:
            reasons.append(str(error))
    if not first or len(reasons) < len(first):
        return
    value = next(iter(first.values()))
    if value.startswith(_PICKLE) and file.get(_LENGTH):
        raise InputError(
            f"{path}: holds pickled rows of tokens, as the release of CogView trains on, and"
            " no images: expected encoded images, or name it as data.store to train on its rows"
        )
    if value.startswith(_PICKLE):
        raise InputError(
            f"{path}: its values are pickled objects, which could run anything when they are"
            " read: expected encoded images as they are in files"
        )
    raise InputError(
        f"{path}: expected encoded images, but the first values are none, such as"
        f" {reasons[0]}; which keys hold images is data.source.image_key"
    )


def _read_texts(file: LmdbFile, texts: KeyPattern | None, name: str) -> list[str]:
    """The texts of a record: the value of its key, or the texts in a JSON list."""
    value = file.get(texts.key(name)) if texts else None
    if value is None:
        return []
    if len(value) > _TEXT_LIMIT:
        raise BadRecord(name, f"a text of {len(value)} bytes: expected at most {_TEXT_LIMIT}")
    try:
        text = value.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadRecord(name, "its text is not UTF-8") from None
    try:
        found = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and all(isinstance(each, str) for each in found):
        return found
    return [text]


def _paired_texts(file: LmdbFile, part: IndexPart) -> dict[str, list[str]]:
    """The texts of each image by its key, which are in memory meanwhile."""
    count = file.get(_PAIRS_COUNT) or b""
    if not count.isdigit() or len(count) > _DIGITS or int(count) > 2 * file.entries:
        raise InputError(
            f"{file.path}: expected pairs and their number, as num_samples; it has {file.entries}"
            f" keys, and num_samples is {repr(count[:_DIGITS])[1:]}"
        )
    found: dict[str, list[str]] = {}
    for i in range(int(count)):
        pair = _plain_tuple(file.get(str(i).encode()) or b"")
        if len(pair) == 3 and isinstance(pair[2], str):
            found.setdefault(str(pair[0]), []).append(pair[2])
        else:
            part.findings.ignored.add("pairs that cannot be read", str(i))
    return found


def _plain_tuple(data: bytes) -> list[int | str]:
    """The numbers and texts of a pickled tuple, of which nothing is run; none of anything else."""
    values: list[int | str] = []
    try:
        for opcode, argument, _ in pickletools.genops(data[:_TEXT_LIMIT]):
            if opcode.name in _VALUES and isinstance(argument, int | str):
                values.append(argument)
            elif opcode.name not in _JOINTS:
                return []
    except (ValueError, IndexError, UnicodeDecodeError):
        return []
    return values
