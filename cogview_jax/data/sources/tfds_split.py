"""Opens a prepared TensorFlow data set as a source of records, without TensorFlow.

Most of the public sets need TensorFlow to be prepared. Reading what was prepared as ArrayRecord
needs none, so a set is found by its files and not by the code that made it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import DatasetBuilder

from cogview_jax.data.images import MAX_PIXELS, decode_image
from cogview_jax.data.records import BadRecord, Record, clean_captions
from cogview_jax.data.sources.tfds_description import check_description
from cogview_jax.runtime import faults
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError, SystemFault


def find_builder(name: str, data_dir: str | os.PathLike) -> DatasetBuilder:
    """Finds and opens the prepared data set `name` under `data_dir`.

    Args:
        name: "name", "name/config" or "name/config:version". Without a version the newest is taken.
        data_dir: the folder of prepared sets. If it is empty, it is that of TFDS (TFDS_DATA_DIR).

    Raises:
        InputError: there is no such set, or it is damaged or names classes that are not TFDS's.
    """
    try:
        folder = _find_folder(name, data_dir or None)
    except tfds.core.DatasetNotFoundError:
        where = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        raise InputError(
            f"name={name!r}: no such prepared data set in {str(where)!r}; where TensorFlow is"
            f" installed, prepare it with"
            f" `tfds build {name} --file_format=array_record --data_dir={where}`"
        ) from None
    except ValueError as error:
        raise InputError(
            f"name={name!r}: expected the name of a TFDS data set, as in"
            f" 'coco_captions' or 'coco_captions/2014:1.1.0' ({_first_line(error)})"
        ) from error
    return open_builder(folder)


def _find_folder(name: str, data_dir: str | os.PathLike | None) -> Path:
    """Returns the folder where TFDS finds a prepared set.

    The public function of TFDS would open the set at once, and import what its description names.
    """
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils import error_utils

    with error_utils.reraise_with_context(tfds.core.DatasetNotFoundError):
        folder = read_only_builder._find_builder_dir(name, data_dir=data_dir)
        if folder is None:
            raise tfds.core.DatasetNotFoundError(name)
    return Path(folder)


def open_builder(folder: str | os.PathLike) -> DatasetBuilder:
    """Opens the prepared data set in a folder, which is the one of a version.

    Raises:
        InputError: its description is damaged, or names classes that are not TFDS's own.
        SystemFault: the machine cannot read it.
    """
    check_description(folder)
    try:
        return faults.retried(lambda: tfds.builder_from_directory(folder), str(folder))
    except SystemFault:
        raise
    except Exception as error:  # A damaged description can raise any of them.
        raise InputError(
            f"{folder}: not readable as a prepared TFDS data set: {_first_line(error)}"
        ) from error


def usual_features(builder: DatasetBuilder) -> tuple[str, str]:
    """Returns the features that hold images and captions, as far as that is clear.

    They are "image" and "captions/text", as in coco_captions. If a set has another one alone that
    is an image or a text, it is that one.
    """
    found = []
    for kind, usual in ((tfds.features.Image, "image"), (tfds.features.Text, "captions/text")):
        keys = _keys(builder, kind)
        found.append(keys[0] if len(keys) == 1 else usual)
    return found[0], found[1]


def split_files(builder: DatasetBuilder, split: str) -> list[str]:
    """Returns the absolute paths of the files that hold the records of a split."""
    files = {part.filename for part in builder.info.splits[split].file_instructions}
    return sorted(map(os.path.abspath, files))  # They contain a relative data_dir already.


class TfdsSource:
    """The records of a split of a prepared TFDS data set."""

    def __init__(
        self,
        builder: DatasetBuilder,
        split: str,
        *,
        image_key: str = "image",
        caption_keys: tuple[str, ...] = (),
        require_captions: bool = True,
        max_pixels: int = MAX_PIXELS,
    ):
        """Opens the split without reading a record.

        Args:
            builder: the data set, as from `find_builder` or `tfds.builder_from_directory`.
            split: a split as TFDS writes it: "train", "train[:90%]", "train+test".
            image_key: the image feature. A slash in a key names a feature within another.
            caption_keys: the text features, or sequences of texts. A record gets all captions.
            require_captions: whether a record without a caption is bad.
            max_pixels: an image with more pixels is a bad record.

        Raises:
            InputError: the split is unknown or empty, a feature is unknown or of the wrong kind, or
                a file is missing, lies elsewhere, or cannot be read without TensorFlow.
        """
        image, text = tfds.features.Image, tfds.features.Text
        _require(builder, "image_key", image_key, image)
        for key in caption_keys:
            _require(builder, "caption_keys", key, text)
        if require_captions and not caption_keys:
            raise InputError(f"caption_keys is empty: choices are {_choices(builder, text)}")
        self._name = f"{builder.info.full_name}/{split}"
        self._image, self._captions = image_key, caption_keys
        self._required, self._max_pixels = require_captions, max_pixels
        self._builder, self._split = builder, split
        _check_split(builder, split)
        try:
            self._records = self._opened()
        except NotImplementedError:
            raise InputError(
                f"{builder.data_dir}: prepared as {builder.info.file_format.value}, which needs"
                " TensorFlow to read; prepare it with --file_format=array_record"
            ) from None
        _check_files(builder, split)

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self._records)

    def describe(self) -> str:
        """Returns one line with the number of records and the name of the split."""
        return f"{counted(len(self), 'record')} of {self._name}"

    def key(self, i: int) -> str:
        """Returns the name of record `i`: NAME/VERSION/SPLIT/i."""
        return f"{self._name}/{i}"

    def __getitem__(self, i: int) -> Record:
        """Reads record `i`.

        Raises:
            BadRecord: the file is damaged there, the image cannot be decoded, or a caption is
                needed and there is none.
            SystemFault: the machine cannot read it.
        """
        key = self.key(i)
        example, captions = self._captioned(i, key)
        image = decode_image(_at(example, self._image), key, max_pixels=self._max_pixels)
        return Record(key, image, captions)

    def captions(self, i: int) -> tuple[str, ...]:
        """The captions of record `i`, whose image is not decoded; see `source.Captioned`."""
        return self._captioned(i, self.key(i))[1]

    def _captioned(self, i: int, key: str) -> tuple[Any, tuple[str, ...]]:
        """Returns record `i` as TFDS reads it, its image still encoded, and its captions."""
        example = faults.retried(lambda: self._read(i, key), key)
        try:
            texts = [text for path in self._captions for text in _texts(_at(example, path))]
        except UnicodeDecodeError:
            raise BadRecord(key, "caption is not UTF-8") from None
        return example, clean_captions(texts, key, required=self._required)

    def _opened(self) -> Any:
        decoders: Any = tfds.decode.SkipDecoding()
        for part in reversed(self._image.split("/")):
            decoders = {part: decoders}
        # Images stay encoded: `decode_image` treats all sources alike.
        return self._builder.as_data_source(self._split, decoders=decoders)

    def _read(self, i: int, key: str) -> Any:
        try:
            return self._records[i]
        except RuntimeError as error:
            fault = faults.system_error(error)
            if fault is not None and faults.is_passing(fault):
                self._records = self._opened()  # A failed reader keeps failing.
                raise fault from error
            raise BadRecord(key, f"damaged file: {_first_line(error)}") from error


def _check_split(builder: DatasetBuilder, split: str) -> None:
    """Raises InputError unless `split` names records of the data set."""
    try:
        count = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        count, why = 0, f" ({_first_line(error)})"
    else:
        why = ""
    if count == 0:
        raise InputError(
            f"split={split!r}: choices for {builder.info.full_name} are"
            f" {', '.join(builder.info.splits)}, or a part that holds records, as 'train[:90%]'"
            + why
        )


def _check_files(builder: DatasetBuilder, split: str) -> None:
    """Raises InputError unless the files of a split lie in the folder of the data set.

    The description of the data set names these files, and may name files elsewhere.
    """
    folder = os.path.abspath(builder.data_dir)
    for path in split_files(builder, split):
        if os.path.dirname(path) != folder:
            raise InputError(f"{folder}: the data of split {split!r} lie elsewhere, in {path}")
        if not os.path.isfile(path):
            raise InputError(f"{path}: a file of split {split!r} is missing")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _at(example: Any, path: str) -> Any:
    while path not in example:  # A name may hold a slash itself, as "image/filename" of COCO.
        part, _, path = path.partition("/")
        example = example[part]
    return example[path]


def _texts(value: Any) -> list[str]:
    """Returns the texts of a Text feature (bytes), or of sequences of them at any depth."""
    if isinstance(value, bytes):
        return [value.decode("utf-8")]
    return [text for item in value for text in _texts(item)]


def _leaves(feature: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every feature that holds values, with its path; those within sequences too."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, inner in feature.items():
            yield from _leaves(inner, f"{path}/{name}" if path else name)
    elif isinstance(feature, tfds.features.Sequence):
        yield from _leaves(feature.feature, path)
    else:
        yield path, feature


def _choices(builder: DatasetBuilder, kind: type) -> str:
    if keys := _keys(builder, kind):
        return ", ".join(keys)
    every = ", ".join(sorted(key for key, _ in _leaves(builder.info.features)))
    return f"none: no feature of {every} is a {kind.__name__}"


def _keys(builder: DatasetBuilder, kind: type) -> list[str]:
    return sorted(key for key, feature in _leaves(builder.info.features) if _is(feature, kind))


def _is(feature: Any, kind: type) -> bool:
    if kind is tfds.features.Text:  # The captions of coco_captions are tensors of strings.
        return isinstance(feature, tfds.features.Tensor) and feature.np_dtype == np.object_
    return isinstance(feature, kind)


def _require(builder: DatasetBuilder, setting: str, key: str, kind: type) -> None:
    feature = dict(_leaves(builder.info.features)).get(key)
    if not _is(feature, kind):
        what = "no such feature" if feature is None else f"that is a {type(feature).__name__}"
        raise InputError(
            f"{setting}: {key!r} of {builder.info.full_name}: {what};"
            f" choices are {_choices(builder, kind)}"
        )
