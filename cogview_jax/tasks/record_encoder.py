"""From captioned images to codes and text ids, with the two tokenizers of a token store."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from cogview_jax.data.records import Record
from cogview_jax.data.token_writer import Encoded
from cogview_jax.data.transforms import Crop, fitted
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class FittedRecord:
    """A record as it is encoded: its images in each size, and the ids of its captions."""

    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...]
    captions: tuple[np.ndarray, ...]


class RecordEncoder:
    """The `Encoder` of a token store."""

    def __init__(
        self,
        model: CogView,
        text: TextTokenizer,
        *,
        sizes: Sequence[tuple[int, int]],
        crop: Crop,
        batch: int,
        text_length: int,
    ):
        """Nothing is computed.

        Args:
            model: whose codec encodes the images.
            text: encodes the captions.
            sizes: rows and columns in pixels of each image that a record becomes.
            crop: how an image gets them.
            batch: images of a batch.
            text_length: the tokens of a caption that training has room for.
        """
        self._model, self._text = model, text
        self._sizes, self._crop, self._batch = sizes, crop, batch
        self._text_length, self._longer = text_length, 0

    def fit(self, record: Record) -> FittedRecord:
        """Crops and resizes the image, and encodes the captions; many threads may do so."""
        return FittedRecord(
            tuple(fitted(record.image, size, self._crop) for size in self._sizes),
            tuple(np.asarray(self._text.encode(text), np.int32) for text in record.captions),
        )

    def encode(self, records: Sequence[FittedRecord]) -> list[Encoded]:
        """At most `batch` records -> for each the ids of its captions, and its codes in a row."""
        # All batches of a size have one shape, so that encoding is compiled once.
        codes = []
        for number, size in enumerate(self._sizes):
            images = np.zeros((self._batch, *size, 3), np.uint8)
            for i, record in enumerate(records):
                images[i] = record.images[number]
            codes.append(self._model.encode(images).reshape(self._batch, -1))
        captions = [record.captions for record in records]
        self._longer += sum(len(ids) > self._text_length for own in captions for ids in own)
        return list(zip(captions, np.concatenate(codes, axis=1), strict=False))

    def counted(self) -> dict[str, int]:
        """How many captions have had more than `text_length` tokens, see `longer_than`."""
        return {longer_than(self._text_length): self._longer}


def longer_than(text_length: int) -> str:
    """What captions of more tokens are counted as, in the notes of the shards of a store."""
    return f"captions longer than {text_length} tokens"
