"""A token store that is begun: its tokenizers and plan are there, and any number of its shards."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogview_jax.data.filters import filtered
from cogview_jax.data.sources.mixture_config import SourceMixture
from cogview_jax.data.sources.source import opened
from cogview_jax.data.token_shards import PLAN, TokenShards, alone
from cogview_jax.data.token_writer import ShardWriter
from cogview_jax.data.views import RandomView, Views
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.tasks.experiment import TransformerExperiment
from cogview_jax.tasks.record_encoder import RecordEncoder, longer_than
from cogview_jax.tasks.store_plan import encoding_plan, selection_plan, source_plan, text_plan
from cogview_jax.tasks.store_tokenizers import given_codec, has_tokenizers, store_tokenizers
from cogview_jax.tasks.stored_tokens import written_grid


def report(path: Path | str, *, worked: bool, cut: str) -> None:
    """Says that a store is finished, and which captions training will `cut`."""
    if worked and cut:
        print(cut, file=sys.stderr)
    state = "finished" if worked else "was finished before: nothing to do"
    print(f"token store {path}: {state}", file=sys.stderr)


def kept(path: Path | str) -> str:
    """What a fault of the machine leaves of the store at `path`, for messages."""
    return f"the shards in {path} that are whole are kept: run the same command again to go on"


@dataclass(frozen=True)
class BegunStore:
    """A token store with its tokenizers and its plan, which may hold all shards or none.

    Attributes:
        shards: its files.
        writer: writes one of them.
        meta: what it says to its readers, see `StoreMeta`.
        text_length: the tokens of a caption that the layout has room for.
    """

    shards: TokenShards
    writer: ShardWriter
    meta: dict[str, Any]
    text_length: int

    def cut_captions(self) -> str:
        """How many captions of the whole store training will cut, in a line; empty for none.

        The notes of the shards say it, whichever process wrote them. Some may have been written
        with another text length, or by an earlier version, and not say it.
        """
        if not self.text_length:  # no text is read at all
            return ""
        what = longer_than(self.text_length)
        notes = [note.counts.get(what) for _, note in self.shards.written(self.shards.shards)]
        said = [count for count in notes if count is not None]
        cut = -(-sum(said) // self.writer.views)
        least = "at least " if len(said) < len(notes) else ""
        line = (
            f"{least}{cut} captions are longer than layout.text_length = {self.text_length}:"
            " training will cut them"
        )
        return line if cut else ""


def begin(experiment: TransformerExperiment, path: Path) -> BegunStore:
    """Makes the tokenizers and the plan of the store at `path`, or opens it where they are there.

    Of several processes one makes them, and the others wait.

    Raises:
        InputError: the data, the codec or the text tokenizer does not fit the config.
    """
    if path.is_file():
        raise InputError(
            f"data.store {path} is a file: a compact binary or an LMDB of the release is trained on"
            " as it is, there is nothing to prepare"
        )
    with _until_begun(path):
        return _begin(experiment, path)


@contextlib.contextmanager
def _until_begun(path: Path) -> Iterator[None]:
    """Lets one process at a time into the block until the store at `path` is begun."""
    with contextlib.ExitStack() as held:
        if not ((path / PLAN).exists() and has_tokenizers(path)):
            held.enter_context(alone(path, "begins"))
        yield


def _begin(experiment: TransformerExperiment, path: Path) -> BegunStore:
    data = experiment.data
    if isinstance(data.source, SourceMixture):
        raise InputError(
            f"data.source.kind = 'mixture' ({', '.join(sorted(data.source.parts))}): a token store"
            " has one source: prepare a store of each part, and mix them by weights of their own"
            " with data.mixture (docs/guides/mixtures.md)"
        )
    encoding = encoding_plan(data, path)
    given = given_codec(experiment)
    source = filtered(opened(data.source, run=data.from_), data.filter)
    tokenizers = store_tokenizers(experiment, given, source, path)
    plan = source_plan(data.source, source, path) | selection_plan(data)
    if data.views > 1:
        sides = data.smallest_crop, data.largest_crop
        aspect = experiment.image_grid if data.crop == "random" else None
        look = RandomView(*sides, data.flip, aspect)
        source = Views(source, data.views, look, experiment.seed)
        plan["views"] = [data.views, *sides, data.flip, experiment.seed]
    text = tokenizers.text()
    model = CogView(codec=tokenizers.codec(), text=text, encode_dtype=data.encode_precision)
    grids = experiment.image_grids
    codec = model.codec.config
    factor = codec.downsampling
    learned, written = (codec.grid, codec.grid), [written_grid(grid) for grid in grids]
    if learned not in grids:
        print(
            "images are encoded as {} x {} codes; the codec has learned {} x {}".format(
                *experiment.image_grid, *learned
            ),
            file=sys.stderr,
        )
    encoder = RecordEncoder(
        model,
        text,
        sizes=[(rows * factor, columns * factor) for rows, columns in grids],
        crop=data.crop,
        batch=data.encode_batch,
        text_length=experiment.layout.text_length,
    )
    identity = {part: tokenizers.sha256(part) for part in ("codec", "text")}
    plan |= {"text_tokenizer": text_plan(data), **identity, **encoding}
    if grids != [learned]:
        # Where a record has one image, of the size that the codec has learned, the plan has no
        # grids, as in earlier versions.
        plan["grids"] = written
    with at_work(kept(path)):
        shards = TokenShards(path, plan=plan, records=len(source), shard_size=data.shard_size)
    writer = ShardWriter(
        shards,
        source,
        encoder,
        batch_size=data.encode_batch,
        max_skipped=data.max_skipped,
        views=data.views,
        counted=encoder.counted,
    )
    meta = {
        "layout": experiment.layout.task,
        "grid": written_grid(experiment.image_grid),
        "grids": written,
        "codebook": codec.codebook,
        "pieces": len(text),
        **({"views": data.views} if data.views > 1 else {}),
        **identity,
    }
    return BegunStore(shards, writer, meta, experiment.layout.text_length)
