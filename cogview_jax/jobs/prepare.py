"""From captioned pictures to a token store, with the tokenizers that made it beside it."""

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cogview_jax.checkpoints.bundle import Bundle, write_bundle
from cogview_jax.data.images import MAX_PIXELS
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources import Source, SourceConfig, open_source
from cogview_jax.data.token_writer import write_store
from cogview_jax.data.transforms import center_crop
from cogview_jax.jobs.experiment import TokenData, TransformerExperiment
from cogview_jax.jobs.workdir import Workdir
from cogview_jax.pipeline import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.lock import locked
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
    if path.is_file():
        raise InputError(
            f"data.store {path} is a file: a compact binary is trained on as it is, there is"
            " nothing to prepare"
        )
    with locked(path / ".prepare.lock", f"the token store {path}", "choose another --workdir"):
        _prepare(experiment, path)


def _prepare(experiment: TransformerExperiment, path: Path) -> None:
    data, given = experiment.data, given_codec(experiment)
    source = open_source(data.source)
    tokenizers = _tokenizers(experiment, given, source, path)
    dtype = policy(experiment.precision).compute
    model = CogView(codec=tokenizers.codec(), text=tokenizers.text(), dtype=dtype)
    grids = experiment.picture_grids
    sizes = [grid * model.codec.config.downsampling for grid in grids]
    batch, longer = data.encode_batch, 0

    def encode(records: list[Record]) -> list[tuple[list[np.ndarray], np.ndarray]]:
        nonlocal longer
        # One shape a size: compiled once.
        pictures = [np.zeros((batch, size, size, 3), np.uint8) for size in sizes]
        texts = []
        for i, record in enumerate(records):
            for of_size, size in zip(pictures, sizes, strict=True):
                of_size[i] = center_crop(record.image, size)
            texts.append([np.asarray(model.text.encode(t), np.int32) for t in record.captions])
            longer += sum(len(text) > experiment.layout.text_length for text in texts[-1])
        codes = [
            model.encode(of_size, grid).reshape(batch, -1)
            for of_size, grid in zip(pictures, grids, strict=True)
        ]
        return list(zip(texts, np.concatenate(codes, axis=1), strict=False))

    identity = {part: tokenizers.sha256(part) for part in ("codec", "text")}
    kept = f"the shards in {path} that are whole are kept: run the same command again to go on"
    with at_work(kept):
        worked = write_store(
            path,
            source,
            encode,
            plan={
                "source": _source_plan(data.source),
                "text_tokenizer": _text_plan(data),
                **identity,
                # A store of one picture a record says nothing of it: so did those of before.
                **({"grids": grids} if len(grids) > 1 else {}),
            },
            meta={
                "layout": experiment.layout.task,
                "grid": data.picture_grid or experiment.layout.grid,
                "grids": grids,
                "codebook": model.codec.config.codebook,
                "pieces": len(model.text),
                **identity,
            },
            batch_size=batch,
            shard_size=data.shard_size,
            skipped=SkippedLog(path, max_skipped=data.max_skipped),
        )
    if longer and experiment.layout.text_length:  # 0 reads no text at all
        print(
            f"{longer} captions are longer than layout.text_length ="
            f" {experiment.layout.text_length}: training will cut them",
            file=sys.stderr,
        )
    state = "finished" if worked else "was finished before: nothing to do"
    print(f"token store {path}: {state}", file=sys.stderr)


def given_codec(experiment: TransformerExperiment) -> Bundle:
    """The bundle in `data.image_tokenizer`, once its codec is known to fit the config."""
    if not experiment.data.image_tokenizer:
        raise InputError(
            "data.image_tokenizer is empty: name the bundle of an image tokenizer, such as"
            " --config.data.image_tokenizer=runs/codec/bundle"
        )
    given = Bundle(experiment.data.image_tokenizer)
    codec = given.codec().config
    window, whole = experiment.layout.grid, experiment.data.picture_grid
    # Either picture of super-resolution may be of the size that the codec has learned.
    learned = codec.grid in experiment.picture_grids
    wanted = {
        "data.picture_grid" if whole else "layout.grid": (
            whole or window,
            (whole or window) if learned else codec.grid,
        ),
        "vocabulary.codes": (experiment.vocabulary.codes, codec.codebook),
    }
    for name, (said, has) in wanted.items():
        if said != has:
            raise InputError(
                f"the codec of {given.path} has {has}, but the config has {name} = {said}:"
                f" pass --config.{name}={has}, or another data.image_tokenizer"
            )
    return given


def _tokenizers(
    experiment: TransformerExperiment, given: Bundle, source: Source[Record], path: Path
) -> Bundle:
    """The store's own copy of its tokenizers, made when it is missing."""
    data, place = experiment.data, path / TOKENIZERS
    if not (place / "bundle.json").exists():
        text = (
            TextTokenizer.load(data.text_tokenizer)
            if data.text_tokenizer
            else train_text_tokenizer(_captions(source, data.text_records), data.text)
        )
        if len(text) > experiment.vocabulary.text:
            raise InputError(
                f"the text tokenizer has {len(text)} pieces, but the config has vocabulary.text ="
                f" {experiment.vocabulary.text}"
            )
        with at_work(f"no record was encoded yet, and {path} can be begun again"):
            write_bundle(place, codec=given, text=text)
    own = Bundle(place)
    if own.sha256("codec") != given.sha256("codec"):
        raise InputError(
            f"{path} was begun with codec {own.sha256('codec')[:12]}, but {given.path} is"
            f" {given.sha256('codec')[:12]}: choose another store, or delete this one"
        )
    return own


def _source_plan(source: SourceConfig) -> dict:
    """What a store depends on of its source; stores of before `max_pixels` do not mention it."""
    plan = asdict(source)
    if source.max_pixels == MAX_PIXELS:
        del plan["max_pixels"]
    return plan


def _text_plan(data: TokenData) -> dict | str:
    """What the text tokenizer of a store depends on: its file, or how it was trained."""
    if data.text_tokenizer:
        return TextTokenizer.load(data.text_tokenizer).sha256
    return asdict(data.text) | {"records": data.text_records}


def _captions(source: Source[Record], records: int) -> list[str]:
    """All captions of the first `records` records; those that cannot be read are passed over.

    Raises:
        InputError: there is no caption.
    """
    captions: list[str] = []
    bad: BadRecord | None = None
    count = min(records, len(source))
    with Progress(count, "captions", unit="record") as progress:
        for i in range(count):
            try:
                captions += source[i].captions
            except BadRecord as error:  # counted and listed when it is encoded
                bad = error
            progress.update()
    if not captions:
        raise InputError(f"no caption in the first {count} records; the last of them: {bad}")
    return captions
