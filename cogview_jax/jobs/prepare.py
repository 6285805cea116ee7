"""From captioned pictures to a token store, with the tokenizers that made it beside it."""

import contextlib
import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np

from cogview_jax.checkpoints.bundle import Bundle, write_bundle
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources import Source, open_source
from cogview_jax.data.token_writer import write_store
from cogview_jax.data.transforms import center_crop
from cogview_jax.jobs.experiment import TokenData, TransformerExperiment
from cogview_jax.jobs.workdir import Workdir
from cogview_jax.pipeline import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.progress import Progress
from cogview_jax.tokenizers.text import TextTokenizer, train_text_tokenizer

#: Within a store: the tokenizer-only bundle its tokens were made with.
TOKENIZERS = "tokenizers"


def store_path(data: TokenData, workdir: Workdir) -> Path:
    """Where the token store of a run lies: `data.store`, or tokens/ in the workdir."""
    return Path(data.store).absolute() if data.store else workdir.path / "tokens"


def prepare(experiment: TransformerExperiment, path: Path) -> None:
    """Fills the token store at `path`; goes on where an earlier run stopped.

    Raises:
        InputError: the data, the codec or the text tokenizer does not fit the config, or too many
            records cannot be read.
    """
    source = open_source(experiment.data.source)
    tokenizers = _tokenizers(experiment, source, path)
    dtype = policy(experiment.precision).compute
    model = CogView(codec=tokenizers.codec(), text=tokenizers.text(), dtype=dtype)
    size, batch = model.codec.config.image_size, experiment.data.encode_batch

    def encode(records: list[Record]) -> list[tuple[list[np.ndarray], np.ndarray]]:
        pictures = np.zeros((batch, size, size, 3), np.uint8)  # one shape: compiled once
        for i, record in enumerate(records):
            pictures[i] = center_crop(record.image, size)
        codes = model.encode(pictures).reshape(batch, -1)
        return [
            ([np.asarray(model.text.encode(text), np.int32) for text in record.captions], row)
            for record, row in zip(records, codes, strict=False)
        ]

    identity = {part: tokenizers.sha256(part) for part in ("codec", "text")}
    meta = {
        "layout": experiment.layout.task,
        "grid": model.codec.config.grid,
        "codebook": model.codec.config.codebook,
        "pieces": len(model.text),
        **identity,
    }
    worked = write_store(
        path,
        source,
        encode,
        plan={"source": _described(experiment.data), **identity},
        meta=meta,
        batch_size=batch,
        shard_size=experiment.data.shard_size,
        skipped=SkippedLog(path, max_skipped=experiment.data.max_skipped),
    )
    state = "finished" if worked else "was finished before: nothing to do"
    print(f"token store {path}: {state}", file=sys.stderr)


def _tokenizers(experiment: TransformerExperiment, source: Source, path: Path) -> Bundle:
    """The store's own copy of its tokenizers, made when it is missing."""
    data, place = experiment.data, path / TOKENIZERS
    if not data.image_tokenizer:
        raise InputError(
            "data.image_tokenizer is empty: name the bundle of an image tokenizer, such as"
            " --config.data.image_tokenizer=runs/codec/bundle"
        )
    given = Bundle(data.image_tokenizer)
    codec = given.codec().config
    wanted = {
        "layout.grid": (experiment.layout.grid, codec.grid),
        "vocabulary.codes": (experiment.vocabulary.codes, codec.codebook),
    }
    for name, (said, has) in wanted.items():
        if said != has:
            raise InputError(
                f"the codec of {given.path} has {has}, but the config has {name} = {said}:"
                f" pass --config.{name}={has}, or another data.image_tokenizer"
            )
    if not (place / "bundle.json").exists():
        text = (
            TextTokenizer.load(data.text_tokenizer)
            if data.text_tokenizer
            else train_text_tokenizer(_captions(source, data.text_records), data.text)
        )
        shutil.rmtree(place, ignore_errors=True)
        write_bundle(place, codec=given, text=text)
    own = Bundle(place)
    if own.sha256("codec") != given.sha256("codec"):
        raise InputError(
            f"{path} was begun with codec {own.sha256('codec')[:12]}, but {given.path} is"
            f" {given.sha256('codec')[:12]}: choose another store, or delete this one"
        )
    if len(own.text()) > experiment.vocabulary.text:
        raise InputError(
            f"the text tokenizer has {len(own.text())} pieces, but the config has vocabulary.text ="
            f" {experiment.vocabulary.text}"
        )
    return own


def _captions(source: Source[Record], records: int) -> list[str]:
    """All captions of the first `records` records; those that cannot be read are passed over."""
    captions: list[str] = []
    count = min(records, len(source))
    with Progress(count, "captions", unit="record") as progress:
        for i in range(count):
            with contextlib.suppress(BadRecord):  # counted and listed when it is encoded
                captions += source[i].captions
            progress.update()
    return captions


def _described(data: TokenData) -> dict:
    """What the tokens depend on, beside the tokenizers: where the records come from."""
    return dataclasses.asdict(data.source)
