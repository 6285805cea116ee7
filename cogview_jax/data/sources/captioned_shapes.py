"""Prepares the data set `captioned_shapes`: drawings of `shapes` that are read through TFDS.

Each record holds the encoded image, both captions and the number of the drawing. Record i of a
split is `shapes.drawing(seed, split, i, size)`, so the data are the same wherever they are
prepared. TensorFlow is not needed, because images are yielded as PNG bytes and records lie in
ArrayRecord files.
"""

import contextlib
import dataclasses
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from cogview_jax.data.sources.tfds_description import check_description
from cogview_jax.runtime import faults
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.progress import Progress
from cogview_jax.shapes import scenes as shapes

#: The folder of the data set, in which each `Settings` has its own.
NAME = "captioned_shapes"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The side of an image, the number of drawings of each split, and the seed of the data set."""

    size: int
    train_count: int
    held_out_count: int
    seed: int

    def __post_init__(self):
        least = {"size": 16, "train_count": 1, "held_out_count": 1, "seed": 0}
        for field, low in least.items():
            if getattr(self, field) < low:
                raise InputError(
                    f"captioned shapes: {field} {getattr(self, field)}: expected at least {low}"
                )

    @property
    def name(self) -> str:
        """Returns the name of the folder for these settings; other settings have other folders."""
        return f"px{self.size}_n{self.train_count}_h{self.held_out_count}_s{self.seed}"


class CaptionedShapes(tfds.core.GeneratorBasedBuilder):
    """Builds the data set of one `Settings` in DATA_DIR/captioned_shapes/NAME/1.0.1."""

    VERSION = tfds.core.Version("1.0.1")
    RELEASE_NOTES: ClassVar = {"1.0.1": "Captions say an orange star, and no longer a orange star."}
    url_infos = None  # TFDS need not look for checksums, because nothing is downloaded.

    def __init__(self, *, settings: Settings, data_dir: str | os.PathLike):
        """Names the data set under `data_dir`; `prepare` makes its images."""
        self.settings = settings
        super().__init__(
            data_dir=os.fspath(data_dir),
            config=tfds.core.BuilderConfig(name=settings.name),
            file_format="array_record",
        )

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.settings.size
        return tfds.core.DatasetInfo(
            builder=self,
            description="Drawings of coloured shapes with exact captions in English and Chinese.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "caption_en": tfds.features.Text(),
                    "caption_zh": tfds.features.Text(),
                    "index": tfds.features.Scalar(np.int64),
                }
            ),
            disable_shuffling=True,  # Record i is drawing i, and readers shuffle.
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        counts = (self.settings.train_count, self.settings.held_out_count)
        return {
            split: self._generate_examples(split, count)
            for split, count in zip(shapes.SPLITS, counts, strict=True)
        }

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        with Progress(count, f"captioned shapes, {split}", unit="drawing") as progress:
            for index in range(count):
                scene, image = shapes.drawing(self.settings.seed, split, index, self.settings.size)
                encoded = io.BytesIO()
                Image.fromarray(image).save(encoded, "png", compress_level=1)
                yield (
                    index,
                    {
                        "image": encoded.getvalue(),
                        "caption_en": shapes.caption(scene, "en"),
                        "caption_zh": shapes.caption(scene, "zh"),
                        "index": index,
                    },
                )
                progress.update()


def prepare(
    data_dir: str | os.PathLike, *, size: int, train_count: int, held_out_count: int, seed: int
) -> Path:
    """Makes the data set, unless that was done before, and returns its folder.

    Read it with `tfds.builder_from_directory(folder).as_data_source("train")`; the splits are
    `train` and `held_out`, captions come back as UTF-8 bytes. The folder appears whole or not at
    all, and what a killed run left is removed. Only one process may prepare it at a time: on many
    hosts with one file system, process 0 prepares it and the others wait.

    Raises:
        InputError: a size, a count or the seed is too small, or an earlier data set is damaged.
    """
    settings = Settings(
        size=size, train_count=train_count, held_out_count=held_out_count, seed=seed
    )
    with _quiet_tfds(), tempfile.TemporaryDirectory() as downloads:
        builder = _builder(settings, data_dir)
        folder = Path(builder.data_dir)
        if not builder.is_prepared():
            for leftover in folder.parent.glob("incomplete.*"):
                shutil.rmtree(leftover)
            # TFDS makes a folder for downloads even where there are none. It may not lie among the
            # data.
            builder.download_and_prepare(download_dir=downloads)
    return folder


def _builder(settings: Settings, data_dir: str | os.PathLike) -> CaptionedShapes:
    """Returns the builder, which reads the description of an earlier data set."""
    folder = Path(data_dir) / NAME / settings.name / str(CaptionedShapes.VERSION)
    if folder.exists():
        check_description(folder)
    try:
        return CaptionedShapes(settings=settings, data_dir=data_dir)
    except Exception as error:  # A damaged description can raise any of them.
        if faults.is_fault(error):
            raise
        raise InputError(
            f"{folder}: not readable as the drawings it held ({faults.reason(error)}): delete it,"
            " and they are drawn again"
        ) from error


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps TFDS from printing announcements, bars, and a warning that a config is our own."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
