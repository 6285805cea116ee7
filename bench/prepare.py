"""Measures how fast `prepare` is, beside what it does one after the other: reading and encoding.

    .venv/bin/python -m bench.prepare [--images N] [--rounds N] [--batch N] [--device_ms N]
        [--folder DIR]

JPEGs of 640 x 480 pixels, made up with the spectrum and the edges of photographs, are cropped and
scaled to 256 pixels and encoded to 16 x 16 codes by a VQGAN of 32 channels, whose weights are
random. A round is a pass of each over all images, one after the other, in an order that turns from
round to round:

    read      reads and crops alone
    encode    encodes alone what was read before
    prepare   writes the token store

Each has all cores and the devices of this machine to itself. The share is that of the speed which
reading and encoding have one after the other, 1 / (1 / read + 1 / encode): 1 is no overlap and no
loss. Where encoding has a device of its own the share may reach 2; where both take all cores it
cannot exceed 1. `--device_ms` puts in the place of the VQGAN a device that takes so many
milliseconds an image and no core: it waits. The command prints the images a second of each (median
and range), the milliseconds of processor time of an image, and the share of each round, of seconds
and of processor time: the latter says what the way through threads and files costs, whatever else
the machine does. It writes bench/results/prepare.json.
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench.data import SIDE, written
from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.data.token_shards import TokenShards
from cogview_jax.data.token_writer import Encoded, FittedItem, ShardWriter, reading, write_store
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.record_encoder import FittedRecord, RecordEncoder
from cogview_jax.tokenizers.codecs.vqgan import VQGANConfig
from cogview_jax.tokenizers.text import TextConfig, train_text_tokenizer
from cogview_jax.training.codec_objective import CodecObjective

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "prepare.json"
CODEC = VQGANConfig(
    image_size=SIDE,
    channels=32,
    multipliers=(1, 1, 2, 2, 4),
    blocks=1,
    attention=(),
    latent_channels=64,
    codebook=1024,
    norm_groups=8,
)


def main() -> None:
    """Makes the images, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="images that are encoded together")
    parser.add_argument("--device_ms", type=float, default=0.0, help="an image takes so long")
    parser.add_argument("--folder", default=None, help="where the images are made; removed after")
    flags = parser.parse_args()
    if flags.images < flags.batch or flags.images % flags.batch:
        parser.error(f"--images {flags.images}: expected a multiple of --batch {flags.batch}")
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        source = written(Path(folder), flags.images)["folder"].open()
        work = Work(source, flags.batch, Path(folder), flags.device_ms / 1000)
        result = measured(
            {"read": work.read, "encode": work.encode, "prepare": work.prepare},
            flags.images,
            flags.rounds,
        )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


class Waiting(RecordEncoder):
    """Finds code 0 everywhere, as slowly as a device would."""

    def __init__(self, seconds: float, *arguments: Any, **settings: Any):
        """seconds: of an image."""
        super().__init__(*arguments, **settings)
        self._seconds, self._zeros = seconds, np.zeros((SIDE // 16) ** 2, np.int32)

    def encode(self, records: Sequence[FittedRecord]) -> list[Encoded]:
        """See `RecordEncoder`."""
        time.sleep(self._seconds * len(records))
        return [(record.captions, self._zeros) for record in records]


class Work:
    """The parts of `prepare`, and the whole."""

    def __init__(self, source: Any, batch: int, folder: Path, waits: float = 0.0):
        """Makes the tokenizers, and reads all images once.

        Args:
            source: captioned images.
            batch: how many are encoded together.
            folder: for stores.
            waits: the seconds of an image of a device that takes no core; 0 for the VQGAN.
        """
        self._source, self._batch, self._folder, self._stores = source, batch, folder, 0
        texts = [caption for i in range(len(source)) for caption in source[i].captions]
        text = train_text_tokenizer(texts, TextConfig(280, "bpe", 1.0))
        kind = functools.partial(Waiting, waits) if waits else RecordEncoder
        self._encoder = kind(
            CogView(codec=None if waits else codec(), text=text),
            text,
            sizes=[(SIDE, SIDE)],
            crop="center",
            batch=batch,
            text_length=64,
        )
        self._fitted = self._read()

    def read(self) -> None:
        """Reads and crops all images."""
        self._read()

    def encode(self) -> None:
        """Encodes what was read."""
        for first in range(0, len(self._fitted), self._batch):
            self._encoder.encode(self._fitted[first : first + self._batch])

    def prepare(self) -> None:
        """Writes a store of one shard."""
        self._stores += 1
        count = len(self._source)
        place = self._folder / f"store{self._stores}"
        shards = TokenShards(place, plan={}, records=count, shard_size=count)
        writer = ShardWriter(
            shards, self._source, self._encoder, batch_size=self._batch, max_skipped=0.0
        )
        write_store(shards, writer, {})

    def _read(self) -> list[Any]:
        span = range(len(self._source))
        with reading(self._source, self._encoder, span, self._batch) as records:
            return [record.item for record in records if isinstance(record, FittedItem)]


def codec() -> CodecPart:
    """A VQGAN whose weights are random."""
    start = CodecObjective(CODEC.module(), global_batch=1)
    params, state = jax.jit(lambda key: unbox(start.init(key)))(jax.random.key(0))
    return CodecPart(CODEC, params, state)


def measured(work: dict[str, Callable[[], None]], images: int, rounds: int) -> dict[str, Any]:
    """Rounds over all parts after a first one that does not count, and what came out."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    processor: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            began, busy = time.perf_counter(), time.process_time()
            work[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)
                processor[name].append(time.process_time() - busy)
    found: dict[str, Any] = {"device": jax.devices()[0].device_kind, "images": images}
    for name in names:
        speeds = [images / each for each in seconds[name]]
        found[name] = {
            "images_a_second": spread(speeds),
            "processor_ms": spread([1000 * each / images for each in processor[name]]),
        }
    for kind, spent in (("seconds", seconds), ("processor_time", processor)):
        parts = zip(spent["read"], spent["encode"], spent["prepare"], strict=True)
        found[f"share_of_{kind}"] = spread([(read + code) / whole for read, code, whole in parts])
    return found


def spread(values: list[float]) -> dict[str, Any]:
    """Median, range, and the values in the order of the rounds."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(values), 3),
        "range": [round(ordered[0], 3), round(ordered[-1], 3)],
        "rounds": [round(value, 3) for value in values],
    }


if __name__ == "__main__":
    main()
