"""The two tokenizers of a token store: those that are given, and the store's own copy."""

import sys
from pathlib import Path

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_folder import text_model
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.checkpoints.description import NAME
from cogview_jax.checkpoints.step_bundle import StepBundle, open_bundle
from cogview_jax.data.records import BadRecord, Record
from cogview_jax.data.sources.source import Source, captions_of
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.paths import named_by
from cogview_jax.runtime.progress import Progress
from cogview_jax.tasks.experiment import TokenData, TransformerExperiment
from cogview_jax.tasks.stored_tokens import TOKENIZERS
from cogview_jax.tokenizers.text import TextConfig, TextTokenizer, train_text_tokenizer

#: Records whose captions are held against a text tokenizer that is given, and the share of their
#: characters that it may not know before a line says so.
TRIED, UNKNOWN = 2000, 0.02


def has_tokenizers(path: Path) -> bool:
    """Whether the store at `path` has its tokenizers, which are made first."""
    return (path / TOKENIZERS / NAME).exists()


def store_tokenizers(
    experiment: TransformerExperiment, given: Bundle, source: Source[Record], path: Path
) -> Bundle:
    """The store's own copy of its tokenizers, which is made if it is missing."""
    data, place = experiment.data, path / TOKENIZERS
    if not has_tokenizers(path):
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
    """The SentencePiece model in `data.text_tokenizer`, a file or ADDRESS/text.model."""
    with named_by("data.text_tokenizer", data.text_tokenizer):
        return TextTokenizer.load(text_model(data.text_tokenizer))


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


def _trained(captions: list[str], config: TextConfig) -> TextTokenizer:
    # Flushed here, since no other thread runs while the library trains.
    print(
        f"training a text tokenizer of {config.pieces:,} pieces on {len(captions):,} captions",
        file=sys.stderr,
        flush=True,
    )
    return train_text_tokenizer(captions, config)


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
