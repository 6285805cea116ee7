"""Captions and the true image of each: what a text-to-image model is compared with."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from cogview_jax.data.held_out import Subset
from cogview_jax.data.images import decode_image, read_image_file
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.sources.source import Source
from cogview_jax.evaluation.image_sets import ImageSet, SourceImages, open_folder
from cogview_jax.runtime.counted import counted
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_json
from cogview_jax.runtime.processes import log
from cogview_jax.shapes.fresh import fresh_scenes
from cogview_jax.tokenizers.prompt import shown

#: Bytes of a file of captions: COCO's of its training split has 90 MB.
CAPTIONS_LIMIT = 2 << 30
#: What `--captions` of a TensorFlow data set looks like. The part of a split may hold a colon.
_TFDS = re.compile(
    r"tfds:(?P<name>[^:\[\]]+(:\d+\.\d+\.\d+)?)"
    r":(?P<split>([^:\[\]]|\[[^\[\]]*\])+)(:(?P<feature>[^:\[\]]+))?"
)
_TFDS_FORM = "tfds:NAME:SPLIT or tfds:NAME:SPLIT:FEATURE, such as tfds:coco_captions/2014:val"


class KeyedImages(ImageSet, Protocol):
    """Images by number that have names."""

    def key(self, number: int) -> str:
        """What an image is called: its file, or the key of its record."""
        ...


@dataclass(frozen=True)
class CaptionedSet:
    """Captions, and as many images.

    Attributes:
        name: for people.
        texts: the captions.
        images: that of each caption; the image of caption i has number i.
        provenance: for reports. Of a TensorFlow data set it has an entry `data_set`: name, version,
            split, the feature that holds the captions, and which caption of an image was taken.
    """

    name: str
    texts: tuple[str, ...]
    images: KeyedImages
    provenance: Mapping[str, Any] = field(default_factory=dict)


def open_captioned(
    captions: str | None, folder: str | None, *, count: int, size: int, seed: int
) -> CaptionedSet:
    """`count` captions with their images.

    Args:
        captions: a file like COCO's captions_val2014.json, whose images are in `folder`; or a
            TensorFlow data set, see `tfds_captions`.
        folder: of images; without `captions` it holds their captions too, as `prepare` reads them.
            Without either, new captioned shapes are drawn.
        count: captions; they are chosen at random by `seed`. Where there are fewer, all are taken,
            and a line says so.
        size: rows and columns of drawings.
        seed: of this choice, and of drawings.

    Raises:
        InputError: there is no caption, or a file cannot be read.
    """
    if captions is not None and captions.startswith("tfds:"):
        return tfds_captions(captions, folder or "", count, seed)
    if captions is not None and folder is None:
        raise InputError(f"--captions {captions}: expected the folder of its images, too (--real)")
    if captions is not None and folder is not None:
        return coco_captions(captions, folder, count, seed)
    if folder is not None:
        return folder_captions(folder, count, seed)
    return drawn_captions(count, size, seed)


def drawn_captions(count: int, size: int, seed: int) -> CaptionedSet:
    """New captioned shapes, half of them of pairs of colour and shape that training has not seen.

    Captions alternate between English and Chinese. The drawings have `size` rows and columns.
    """
    each = -(-count // 2)
    splits = list(fresh_scenes(each, seed))
    texts = [text for split in splits for text in split.texts][:count]
    drawings = np.concatenate([split.drawings(size) for split in splits])[:count]
    name = f"{count} new captioned shapes"
    return CaptionedSet(name, tuple(texts), ArrayImages(drawings, name))


def folder_captions(folder: str, count: int, seed: int) -> CaptionedSet:
    """Images of a folder that have captions, chosen at random; one caption of each, at random."""
    source = open_folder(folder, "--real", captions=True)
    texts, chosen = _chosen(source, folder, count, seed)
    return CaptionedSet(f"{len(texts)} captions of {folder}", texts, SourceImages(chosen, folder))


def tfds_captions(given: str, data_dir: str, count: int, seed: int) -> CaptionedSet:
    """Images of a prepared TensorFlow data set, chosen at random; one caption of each, at random.

    Args:
        given: tfds:NAME:SPLIT or tfds:NAME:SPLIT:FEATURE. NAME is name/config or
            name/config:version, SPLIT as TFDS writes it ("val", "val+restval", "val[:50%]"), and
            FEATURE holds captions; where it is left out, it is captions/text, as in coco_captions,
            or the only feature that is a text.
        data_dir: the folder of prepared sets; if it is empty, that of TFDS (TFDS_DATA_DIR).
        count, seed: as `open_captioned`.

    Raises:
        InputError: `given` has another form, the set is not prepared, or lacks the split, the
            feature or an image.
    """
    # TFDS is imported only where it is needed: it takes a second.
    from cogview_jax.data.sources import tfds_split

    if (parts := _TFDS.fullmatch(given)) is None:
        raise InputError(f"--captions {given}: expected {_TFDS_FORM}")
    split = parts["split"]
    try:
        builder = tfds_split.find_builder(parts["name"], data_dir)
        image, usual = tfds_split.usual_features(builder)
        feature = parts["feature"] or usual
        source = tfds_split.TfdsSource(builder, split, image_key=image, caption_keys=(feature,))
    except InputError as error:
        raise InputError(f"--captions {given}: {error} (tfds:NAME:SPLIT:FEATURE)") from error
    name = f"{builder.info.full_name}/{split}"
    texts, chosen = _chosen(source, name, count, seed)
    version = str(builder.info.version)
    data_set = {
        "name": builder.info.full_name.removesuffix(f"/{version}"),
        "version": version,
        "split": split,
        "feature": feature,
        "caption": f"one of each image's, at random by seed {seed}",
    }
    images = SourceImages(chosen, name, tfds_split.split_files(builder, split))
    heading = f"{len(texts)} captions of {name}"
    return CaptionedSet(heading, texts, images, {"data_set": data_set})


def _chosen(
    source: Source[Record], name: str, count: int, seed: int
) -> tuple[tuple[str, ...], Subset[Record]]:
    """Captions, one of each record, and the records; both at random by `seed`.

    Records that cannot be used are passed over; a line counts them and names the first.
    """
    rng = np.random.default_rng(seed)
    numbers: list[int] = []
    texts: list[str] = []
    passed: list[BadRecord] = []
    for number in rng.permutation(len(source)):
        if len(texts) == count:
            break
        try:
            captions = source[int(number)].captions
        except BadRecord as error:
            passed.append(error)
            continue
        numbers.append(int(number))
        texts.append(captions[rng.integers(len(captions))])
    _say_of_few(len(texts), count, f"{name} has {len(texts)} readable images with a caption")
    if passed:
        log(f"{name}: {counted(len(passed), 'record')} cannot be used, such as {passed[0]}")
    return tuple(texts), Subset(source, len(numbers), numbers.__getitem__)


def coco_captions(file: str, folder: str, count: int, seed: int) -> CaptionedSet:
    """Captions of a file in COCO's format, chosen at random, and the images that they are of."""
    found = read_json(file, limit=CAPTIONS_LIMIT)
    names: dict[Any, Any] = {}
    try:
        for image in found["images"]:
            name = image["file_name"]
            if names.setdefault(image["id"], name) != name:
                raise InputError(
                    f"{file}: two images have the id {image['id']!r}: {names[image['id']]!r} and"
                    f" {name!r}"
                )
        given = [(each["caption"], each["image_id"]) for each in found["annotations"]]
        pairs = [(caption, names.get(key)) for caption, key in given]
    except (KeyError, TypeError):
        raise InputError(
            f"{file} is no file of captions in COCO's format: expected images with id and"
            " file_name, and annotations with image_id and caption"
        ) from None
    for caption, key in given:
        if not isinstance(caption, str):
            raise InputError(f"{file}: the caption {caption!r} of an annotation is no text")
        if key not in names:
            raise InputError(f"{file}: no image has the id {key!r} of the caption {shown(caption)}")
    _say_of_few(len(pairs), count, f"{file} has {len(pairs)} captions")
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:count]
    texts = tuple(" ".join(pairs[i][0].split()) for i in chosen)
    images = _CocoImages(folder, [pairs[i][1] for i in chosen])
    return CaptionedSet(f"{len(texts)} captions of {Path(file).name}", texts, images)


def _say_of_few(found: int, count: int, there: str) -> None:
    if not found:
        raise InputError(f"--num_prompts {count}: {there}")
    if found < count:
        log(f"--num_prompts {count}: {there}, all of which are taken")


class ArrayImages:
    """Images in memory, uint8 [n, h, w, 3], as an `ImageSet`."""

    def __init__(self, pixels: UInt8[np.ndarray, "n h w 3"], name: str):
        """name: for people."""
        self.name, self._pixels = name, pixels
        self.identity = {"images": hashlib.sha256(pixels.tobytes()).hexdigest()}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._pixels)

    def key(self, number: int) -> str:
        """The number."""
        return str(number)

    def read(self, numbers: Sequence[int]) -> Iterator[np.ndarray | BadRecord]:
        """See `ImageSet`."""
        yield from (self._pixels[number] for number in numbers)


class _CocoImages(SourceImages):
    """Files of one folder, in the order of captions; a file may come several times."""

    def __init__(self, folder: str, files: Sequence[Any]):
        super().__init__(_Files(folder, files), folder)


class _Files:
    """Images of a folder by their names, as a `Source`."""

    def __init__(self, folder: str, files: Sequence[Any]):
        if not os.path.isdir(folder):
            raise InputError(f"--real {folder}: expected a folder of images, there is none")
        self._folder, self._files = folder, files

    def __len__(self) -> int:
        return len(self._files)

    def key(self, i: int) -> str:
        return str(self._files[i])

    def __getitem__(self, i: int) -> Record:
        name = self._files[i]
        # The file names what is opened: nothing outside the folder.
        if not isinstance(name, str) or name != os.path.basename(name) or name in ("", ".", ".."):
            raise BadRecord(str(name), "expected the name of a file in the folder")
        path = os.path.join(self._folder, name)
        if os.path.dirname(os.path.realpath(path)) != os.path.realpath(self._folder):
            raise BadRecord(name, "a link leads out of the folder")
        try:
            return Record(name, decode_image(read_image_file(path), name), ())
        except (InputError, OSError) as error:
            raise BadRecord(name, str(error)) from None
