"""Any prepared TensorFlow data set as a source, read without TensorFlow.

Preparing most of the public sets needs TensorFlow, once; reading what was prepared as ArrayRecord
does not. So a set is found by its files, not by the code that made it.
"""

import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from cogview_jax.data.images import decode_image
from cogview_jax.data.records import BadRecord, Record, clean_captions
from cogview_jax.runtime.errors import InputError

Builder = tfds.core.DatasetBuilder


def find_builder(name: str, data_dir: str | os.PathLike) -> Builder:
    """The prepared data set `name` under `data_dir`.

    Args:
        name: "name", "name/config" or "name/config:version"; the newest version if none is said.
        data_dir: the folder of prepared sets; empty for TFDS's own (TFDS_DATA_DIR).

    Raises:
        InputError: no such set there.
    """
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir or None)
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


class TfdsSource:
    """A split of a prepared TFDS data set."""

    def __init__(
        self,
        builder: Builder,
        split: str,
        *,
        image_key: str = "image",
        caption_keys: tuple[str, ...] = (),
        require_captions: bool = True,
    ):
        """Opens the split; reads no record.

        Args:
            builder: the data set, as from `find_builder` or `tfds.builder_from_directory`.
            split: as TFDS writes it: "train", "train[:90%]", "train+test".
            image_key: the image feature. Keys go into nested features by slashes.
            caption_keys: the text features, or sequences of texts; a record gets all captions.
            require_captions: whether a record without a caption is bad.

        Raises:
            InputError: unknown or empty split, unknown feature or one of the wrong kind, or
                files that cannot be read without TensorFlow.
        """
        image, text = tfds.features.Image, tfds.features.Text
        _require(builder, "image_key", image_key, image)
        for key in caption_keys:
            _require(builder, "caption_keys", key, text)
        if require_captions and not caption_keys:
            raise InputError(f"caption_keys is empty: choices are {_choices(builder, text)}")
        self._name = f"{builder.info.full_name}/{split}"
        self._image, self._captions = image_key, caption_keys
        self._required = require_captions
        _check_split(builder, split)
        decoders: Any = tfds.decode.SkipDecoding()
        for part in reversed(image_key.split("/")):
            decoders = {part: decoders}
        try:
            # Images stay encoded: `decode_image` treats all sources alike.
            self._records = builder.as_data_source(split, decoders=decoders)
        except NotImplementedError:
            raise InputError(
                f"{builder.data_dir}: prepared as {builder.info.file_format.value}, which needs"
                " TensorFlow to read; prepare it with --file_format=array_record"
            ) from None

    def __len__(self) -> int:
        """The number of records."""
        return len(self._records)

    def key(self, i: int) -> str:
        """NAME/VERSION/SPLIT/i."""
        return f"{self._name}/{i}"

    def __getitem__(self, i: int) -> Record:
        """Reads record `i`.

        Raises:
            BadRecord: the file is damaged there, the image cannot be decoded, or a caption is
                needed and there is none.
        """
        key = self.key(i)
        try:
            example = self._records[i]
        except RuntimeError as error:
            raise BadRecord(key, f"damaged file: {str(error).splitlines()[0]}") from error
        try:
            texts = [text for path in self._captions for text in _texts(_at(example, path))]
        except UnicodeDecodeError:
            raise BadRecord(key, "caption is not UTF-8") from None
        captions = clean_captions(texts, key, required=self._required)
        return Record(key, decode_image(_at(example, self._image), key), captions)


def _check_split(builder: Builder, split: str) -> None:
    """InputError unless `split` names records of the data set."""
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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _at(example: Any, path: str) -> Any:
    for part in path.split("/"):
        example = example[part]
    return example


def _texts(value: Any) -> list[str]:
    """The texts of a Text feature (bytes) or of a sequence of them, however deep."""
    if isinstance(value, bytes):
        return [value.decode("utf-8")]
    return [text for item in value for text in _texts(item)]


def _leaves(feature: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every feature that holds values, with its slash path; sequences are looked through."""
    if isinstance(feature, tfds.features.FeaturesDict):
        for name, inner in feature.items():
            yield from _leaves(inner, f"{path}/{name}" if path else name)
    elif isinstance(feature, tfds.features.Sequence):
        yield from _leaves(feature.feature, path)
    else:
        yield path, feature


def _choices(builder: Builder, kind: type) -> str:
    keys = [key for key, feature in _leaves(builder.info.features) if isinstance(feature, kind)]
    return ", ".join(sorted(keys)) or f"none: no feature is a {kind.__name__}"


def _require(builder: Builder, setting: str, key: str, kind: type) -> None:
    feature = dict(_leaves(builder.info.features)).get(key)
    if not isinstance(feature, kind):
        what = "no such feature" if feature is None else f"that is a {type(feature).__name__}"
        raise InputError(
            f"{setting}: {key!r} of {builder.info.full_name}: {what};"
            f" choices are {_choices(builder, kind)}"
        )
