"""The release's query language over a bundle: any pattern of given and sampled tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.data.records import BadRecord
from cogview_jax.interop.official.fill import SAMPLES, fill, seeded_choice
from cogview_jax.interop.official.images import official_pixels, official_square
from cogview_jax.interop.official.query import parse_query
from cogview_jax.pipeline.parts import Parts
from cogview_jax.runtime.bounds import need_count
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import retried
from cogview_jax.runtime.files import read_regular
from cogview_jax.runtime.paths import inside
from cogview_jax.sampling.decode import OPEN
from cogview_jax.sampling.options import SamplingConfig

#: The longest query in learned positions, which may begin again within it.
STRETCHES = 8
#: Of an image that a query names, the most bytes that are read.
IMAGE_BYTES = 256 << 20

#: The folder that the images of a query are in, or what gives the image of a name.
Images = str | Path | Callable[[str], Any]


def fill_query(
    parts: Parts,
    query: str,
    samples: int,
    seed: int,
    images: Images | None,
    image_size: int | None,
    sampling: SamplingConfig,
) -> np.ndarray:
    """Samples the places that a query leaves open: int32 [samples, length].

    A query is a line of the release's language (`interop.official.query`), such as "[ROI1] a red
    circle [BASE] [BOI1] [MASK]*1024": whatever weights were trained on can be asked for.
    [Image]PATH stands for the codes of an image, read as the release reads one.
    `decode_sequence` of that module tells the texts and images of a row.

    Args:
        parts: of the bundle.
        query: see above.
        samples: how often the open places are filled.
        seed: of the random numbers.
        images: the folder that a query's paths are in, outside of which no file is opened; or a
            function that gives the image of a name, uint8 [h, w, 3 or 4] or a PIL image. Without it
            a query holds no images.
        image_size: of each image in pixels; the codec's where None, half of it for the small image
            of a super-resolution.
        sampling: temperature and filters.

    Raises:
        InputError: the query is not in the language, is longer than the positions, names an image
            that cannot be read, or asks for too many samples.
    """
    parts.need("transformer", "text")
    need_count("samples", samples, SAMPLES)
    model, vocabulary = parts.engine.model, parts.layout.vocabulary
    tokens = parse_query(
        query,
        vocabulary,
        parts.tokenizer,
        lambda name: _codes_of(parts, name, images, image_size),
        STRETCHES * model.positions,
    )
    marked = np.where(tokens == OPEN, -samples, tokens)
    return fill(model, parts.engine.params, marked, vocabulary, sampling, seeded_choice(seed))


def _codes_of(parts: Parts, name: str, images: Images | None, size: int | None) -> np.ndarray:
    """The codes of a query's image at `size` pixels, in raster order."""
    parts.need("codec")
    config = parts.codec.config
    size = config.image_size if size is None else size
    if size < 1 or size % config.downsampling:
        raise InputError(
            f"image_size {size}: expected a multiple of the codec's {config.downsampling}"
        )
    square = official_square(_pixels(name, images), size)[None]
    return np.asarray(parts.codes_of(square)).ravel()


def _pixels(name: str, images: Images | None) -> np.ndarray:
    """The pixels of a query's image."""
    shown = f"[Image]{name[:200]}"
    if images is None:
        raise InputError(f"{shown}: expected images=FOLDER, the folder that images are read from")
    if callable(images):
        return np.asarray(images(name))
    try:
        path = inside(images, name)
        data = retried(lambda: read_regular(path, IMAGE_BYTES), str(path))
        return official_pixels(data, name)
    except (OSError, BadRecord, InputError) as error:
        raise InputError(f"{shown} cannot be read: {error}") from error
