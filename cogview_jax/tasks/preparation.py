"""From captioned images to a token store, which holds the tokenizers that made it."""

import json
import sys
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

import jax
import numpy as np

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.step_bundle import StepBundle, open_bundle
from cogview_jax.data.filters import filtered
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.source import (
    Source,
    SourceConfig,
    captions_of,
    listing,
    opened,
)
from cogview_jax.data.token_shards import MANIFEST, PLAN
from cogview_jax.data.token_writer import write_store
from cogview_jax.data.transforms import fitted
from cogview_jax.data.views import RandomView, Views
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import write_json
from cogview_jax.runtime.lock import locked
from cogview_jax.runtime.paths import named_by
from cogview_jax.runtime.progress import Progress
from cogview_jax.runtime.sealed import read_sealed
from cogview_jax.tasks.experiment import TokenData, TransformerExperiment
from cogview_jax.tasks.workdir import Workdir, resolved_settings
from cogview_jax.tokenizers.text import TextConfig, TextTokenizer, train_text_tokenizer

#: Within a store: the tokenizer-only bundle its tokens were made with.
TOKENIZERS = "tokenizers"
#: Records whose captions are held against a text tokenizer that is given, and the share of their
#: characters that it may not know before a line says so.
TRIED, UNKNOWN = 2000, 0.02


@dataclass(frozen=True)
class StoreMeta:
    """The metadata that a store has for its readers.

    Attributes:
        grid: rows and columns of the codes of an image; of the larger image where there are two.
            One number where they are the same (`written_grid`).
        codebook: the number of codes.
        pieces: the number of text pieces.
        codec: the hash of the codec.
        text: the hash of the text tokenizer.
        grids: rows and columns of all images of a record; None in stores of earlier versions,
            whose records had one.
        layout: the task that the store was made for.
        views: how many examples in a row are of one image.
    """

    grid: int | tuple[int, int]
    codebook: int
    pieces: int
    codec: str
    text: str
    grids: list[int | tuple[int, int]] | None = None
    layout: str | None = None
    views: int = 1


def written_grid(grid: tuple[int, int]) -> int | tuple[int, int]:
    """Rows and columns as configs and stores have them: one number where they are the same."""
    rows, columns = grid
    return rows if rows == columns else grid


def store_path(data: TokenData, workdir: Workdir) -> Path:
    """Where the token store of a run lies: `data.store`, or tokens/ in the workdir."""
    return Path(data.store).absolute() if data.store else workdir.path / "tokens"


def prepare_run(experiment: TransformerExperiment, workdir: Workdir) -> None:
    """Fills the token store of a run, and leaves in its workdir the settings that it has now.

    Raises:
        InputError: as `prepare`.
    """
    prepare(experiment, store_path(experiment.data, workdir))
    write_json(workdir.prepared, resolved_settings(experiment))


def prepare(experiment: TransformerExperiment, path: Path) -> None:
    """Fills the token store at `path`; resumes where an earlier run stopped.

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
    data = experiment.data
    encoding = _encoding(data, path)
    given = given_codec(experiment)
    source = filtered(opened(data.source, run=data.from_), data.filter)
    tokenizers = _tokenizers(experiment, given, source, path)
    plan = _source_plan(data.source, source, path) | _selection_plan(data)
    if data.views > 1:
        sides = data.smallest_crop, data.largest_crop
        aspect = experiment.image_grid if data.crop == "random" else None
        look = RandomView(*sides, data.flip, aspect)
        source = Views(source, data.views, look, experiment.seed)
        plan["views"] = [data.views, *sides, data.flip, experiment.seed]
    text_tokenizer = tokenizers.text()
    model = CogView(
        codec=tokenizers.codec(), text=text_tokenizer, encode_dtype=data.encode_precision
    )
    grids = experiment.image_grids
    codec = model.codec.config
    sizes = [(rows * codec.downsampling, columns * codec.downsampling) for rows, columns in grids]
    learned, written = (codec.grid, codec.grid), [written_grid(grid) for grid in grids]
    if learned not in grids:
        print(
            "images are encoded as {} x {} codes; the codec has learned {} x {}".format(
                *experiment.image_grid, *learned
            ),
            file=sys.stderr,
        )
    batch, longer = data.encode_batch, 0

    def encode(records: list[Record]) -> list[tuple[list[np.ndarray], np.ndarray]]:
        nonlocal longer
        # All batches of a size have one shape, so that encoding is compiled once.
        images = [np.zeros((batch, *size, 3), np.uint8) for size in sizes]
        texts = []
        for i, record in enumerate(records):
            for of_size, size in zip(images, sizes, strict=True):
                of_size[i] = fitted(record.image, size, data.crop)
            texts.append([np.asarray(text_tokenizer.encode(t), np.int32) for t in record.captions])
            longer += sum(len(text) > experiment.layout.text_length for text in texts[-1])
        codes = [model.encode(of_size).reshape(batch, -1) for of_size in images]
        return list(zip(texts, np.concatenate(codes, axis=1), strict=False))

    identity = {part: tokenizers.sha256(part) for part in ("codec", "text")}
    kept = f"the shards in {path} that are whole are kept: run the same command again to go on"
    worked = at_work(kept)(write_store)(
        path,
        source,
        encode,
        plan={
            **plan,
            "text_tokenizer": _text_plan(data),
            **identity,
            **encoding,
            # Where a record has one image, of the size that the codec has learned, the plan has no
            # grids, as in earlier versions.
            **({} if grids == [learned] else {"grids": written}),
        },
        meta={
            "layout": experiment.layout.task,
            "grid": written_grid(experiment.image_grid),
            "grids": written,
            "codebook": codec.codebook,
            "pieces": len(text_tokenizer),
            **({"views": data.views} if data.views > 1 else {}),
            **identity,
        },
        batch_size=batch,
        shard_size=data.shard_size,
        skipped=SkippedLog(path, max_skipped=data.max_skipped),
        views=data.views,
    )
    if longer and experiment.layout.text_length:  # 0 reads no text at all
        print(
            f"{longer} captions are longer than layout.text_length ="
            f" {experiment.layout.text_length}: training will cut them",
            file=sys.stderr,
        )
    state = "finished" if worked else "was finished before: nothing to do"
    print(f"token store {path}: {state}", file=sys.stderr)


def _encoding(data: TokenData, path: Path) -> dict[str, str]:
    """What the codes of a store depend on besides images and codec, for its plan.

    Devices of another kind round differently and choose another code for some vectors, which does
    not matter for a finished store. A store that was begun before plans had these entries is
    finished without them.

    Raises:
        InputError: the store at `path` was begun in another precision, or on another kind of
            device.
    """
    device = jax.devices()[0]
    here = {
        "precision": data.encode_precision,
        "platform": device.platform,
        "device_kind": device.device_kind,
    }
    if not (path / PLAN).exists():
        return here
    begun = read_sealed(path / PLAN)
    there = {name: begun[name] for name in here if name in begun}
    finished = (path / MANIFEST).exists()
    if not there:
        if not finished:
            print(
                f"{path} does not say how it was begun; the rest of it is encoded in"
                f" {data.encode_precision} on {device.device_kind}",
                file=sys.stderr,
            )
        return {}
    if there["precision"] != data.encode_precision:
        raise InputError(
            f"{path} was begun with codes found in {there['precision']}, but the config has"
            f" data.encode_precision = {data.encode_precision}: pass"
            f" --config.data.encode_precision={there['precision']}, or choose another data.store"
        )
    if not finished and there != here:
        was, now = (f"{x['platform']} ({x['device_kind']})" for x in (there, here))
        raise InputError(
            f"{path} was begun on {was}, and this is {now}, which finds other codes here and there:"
            " finish it there, choose another data.store, or delete it to begin anew"
        )
    return there


def given_codec(experiment: TransformerExperiment) -> Bundle:
    """The bundle in `data.image_tokenizer`, once its codec is known to fit the config."""
    if not experiment.data.image_tokenizer:
        raise InputError(
            "data.image_tokenizer is empty: name the bundle of an image tokenizer, such as"
            " --config.data.image_tokenizer=runs/codec/bundle"
        )
    with named_by("data.image_tokenizer", experiment.data.image_tokenizer):
        given = open_bundle(experiment.data.image_tokenizer)
        if isinstance(given, StepBundle):
            raise InputError(
                f"{given.path} is a checkpoint, which its run may delete: finish the run, and name"
                " its workdir or its bundle"
            )
        codec = given.codec().config
    grid = experiment.layout.grid
    # Either image of super-resolution may have the size that the codec was trained on, and
    # data.image_grid may ask for any other.
    learned = (codec.grid, codec.grid) in experiment.image_grids
    if not (learned or experiment.data.image_grid):
        raise InputError(
            f"the codec of {given.path} has learned images of {codec.image_size} pixels,"
            f" {codec.grid} x {codec.grid} codes, but the config has layout.grid = {grid}: for such"
            f" images pass --config.layout.grid={codec.grid}, or the variant of the config that is"
            f" made for them; for {grid} x {grid} codes name an image tokenizer of images of"
            f" {grid * codec.downsampling} pixels (data.image_tokenizer or data.from)"
        )
    if codec.codebook != experiment.vocabulary.codes:
        raise InputError(
            f"the codec of {given.path} has {codec.codebook} codes, but the config has"
            f" vocabulary.codes = {experiment.vocabulary.codes}: pass"
            f" --config.vocabulary.codes={codec.codebook}, or another data.image_tokenizer"
        )
    return given


def given_text(data: TokenData) -> TextTokenizer:
    """The SentencePiece model in `data.text_tokenizer`."""
    with named_by("data.text_tokenizer", data.text_tokenizer):
        return TextTokenizer.load(data.text_tokenizer)


def _tokenizers(
    experiment: TransformerExperiment, given: Bundle, source: Source[Record], path: Path
) -> Bundle:
    """The store's own copy of its tokenizers, which is made if it is missing."""
    data, place = experiment.data, path / TOKENIZERS
    if not (place / "bundle.json").exists():
        if data.text_tokenizer:
            text = given_text(data)
            _warn_of_unknown(text, data.text_tokenizer, _captions(source, TRIED))
        else:
            text = _trained(_captions(source, data.text_records), data.text)
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


def _warn_of_unknown(text: TextTokenizer, name: str, captions: list[str]) -> None:
    """Says where a text tokenizer was trained for other languages than those of the captions."""
    share = text.unknown_share(captions)
    if share > UNKNOWN:
        print(
            f"data.text_tokenizer {name}: {share:.0%} of the characters of the first"
            f" {len(captions):,} captions have no token in it: they are written in bytes, or lost,"
            " and a model that was trained with it does not know them",
            file=sys.stderr,
        )


def source_settings(source: SourceConfig) -> dict:
    """The settings of a source, as JSON has them."""
    return json.loads(json.dumps(asdict(source)))


def _source_plan(source: SourceConfig, records: Source[Record], path: Path) -> dict:
    """The settings of the source that the store at `path` depends on, and its listing.

    If a store was begun by an earlier version, settings that did not exist then have their
    defaults, it may name settings of other kinds of sources, and it has no listing. If nothing else
    differs, or the same listing lies at another path, what its plan says is kept.
    """
    here = source_settings(source)
    plan = {"source": here, "listing": listing(records)}
    if not (path / PLAN).exists():
        return plan
    written = read_sealed(path / PLAN)
    begun, listed = written.get("source"), written.get("listing")
    if listed is None:
        del plan["listing"]
    if not isinstance(begun, dict) or begun.get("kind") != source.kind:
        return plan
    foreign = SourceConfig.foreign(source.kind)
    own = {name: value for name, value in begun.items() if name not in foreign}
    # How remote files are read changes no record.
    free = ("path", "index", "remote") if listed == plan.get("listing", "") else ("remote",)
    own |= {name: here[name] for name in free if name in here}
    defaults = {f.name: f.default for f in fields(source) if f.default is not MISSING}
    same = json.loads(json.dumps(defaults, default=asdict)) | own == here
    return plan | ({"source": begun} if same else {})


def _selection_plan(data: TokenData) -> dict[str, object]:
    """Filters and crop as a plan has them; nothing of what has its default, as in older stores."""
    plan: dict[str, object] = {"filter": data.filter.plan(), "crop": data.crop}
    return {name: value for name, value in plan.items() if value not in ({}, "center")}


def _trained(captions: list[str], config: TextConfig) -> TextTokenizer:
    # Flushed here, since no other thread runs while the library trains.
    print(
        f"training a text tokenizer of {config.pieces:,} pieces on {len(captions):,} captions",
        file=sys.stderr,
        flush=True,
    )
    return train_text_tokenizer(captions, config)


def _text_plan(data: TokenData) -> dict | str:
    """What the text tokenizer of a store depends on: its file, or how it was trained."""
    if data.text_tokenizer:
        return given_text(data).sha256
    settings = asdict(data.text)
    if data.text.byte_fallback:
        del settings["byte_fallback"]  # as in stores of earlier versions, which had no such setting
    return settings | {"records": data.text_records}


def _captions(source: Source[Record], records: int) -> list[str]:
    """All captions of the first `records` records, those of unreadable images among them.

    Raises:
        InputError: there is no caption.
    """
    captions: list[str] = []
    bad: BadRecord | None = None
    count = min(records, len(source))
    with Progress(count, "captions", unit="record") as progress:
        for i in range(count):
            try:
                captions += captions_of(source, i)
            except BadRecord as error:  # counted and listed when it is encoded
                bad = error
            progress.update()
    if not captions:
        raise InputError(f"no caption in the first {count} records; the last of them: {bad}")
    return captions
