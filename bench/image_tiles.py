"""Cuts the images of a folder into tiles, of which image tokenizers are trained and tested."""

import numpy as np
from PIL import Image

from cogview_jax.data.records import Record
from cogview_jax.data.sources.folder import Folder
from cogview_jax.data.sources.source import readable


class Tiles:
    """Square tiles of images, in memory. The shorter side of an image is eight tiles long.

    Args:
        path: the folder of the images.
        size: the side of a tile in pixels.
        held_out: takes the tiles of every eighth image if true, else those of all others.
    """

    def __init__(self, path: str, size: int, *, held_out: bool):
        images = readable(Folder(path=path, require_captions=False).open())
        mine = (record for i, record in enumerate(images) if (i % 8 == 0) == held_out)
        self._records = [tile for record in mine for tile in tiles(record, size)]

    def __len__(self) -> int:
        return len(self._records)

    def key(self, i: int) -> str:
        """Returns the name of the image and the place of the tile in it."""
        return self._records[i].key

    def __getitem__(self, i: int) -> Record:
        return self._records[i]


def tiles(record: Record, size: int) -> list[Record]:
    """Returns the tiles of one image, of `size` x `size` pixels."""
    image = Image.fromarray(record.image)
    scale = 8 * size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return [
        Record(f"{record.key}:{y}:{x}", pixels[y : y + size, x : x + size], ())
        for y in range(0, height - size + 1, size)
        for x in range(0, width - size + 1, size)
    ]
