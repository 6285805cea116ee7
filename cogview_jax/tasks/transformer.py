"""The task of stage 2: a transformer, its rows, previews and bundle."""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cogview_jax.checkpoints.bundle import FILES, Bundle
from cogview_jax.checkpoints.bundle_folder import text_model
from cogview_jax.checkpoints.bundle_parts import TransformerPart
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.data.held_out import split
from cogview_jax.data.held_out_batches import with_parts
from cogview_jax.data.sources.mixture import in_turn
from cogview_jax.data.sources.source import Source
from cogview_jax.data.token_records import TokenRecord
from cogview_jax.data.transforms import code_grids, corrupted, random_window
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.interop.official.compact_binary import CompactBinary
from cogview_jax.interop.official.token_lmdb import TokenLmdb, is_lmdb
from cogview_jax.models.code_embeddings import code_embeddings
from cogview_jax.models.transformer import Transformer
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import to_host
from cogview_jax.runtime.precision import policy
from cogview_jax.runtime.processes import log
from cogview_jax.tasks.experiment import TransformerExperiment
from cogview_jax.tasks.held_out_loss import HELD_OUT_LOSSES, HeldOutLoss
from cogview_jax.tasks.init_from import check_transformer, different_model
from cogview_jax.tasks.sample_prompts import read_sample_prompts
from cogview_jax.tasks.store_tokenizers import given_codec, given_text
from cogview_jax.tasks.stored_tokens import (
    TOKENIZERS,
    open_mixture,
    open_store,
    store_path,
    store_paths,
)
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.layout import Example, make_layout
from cogview_jax.tokenizers.text import TextTokenizer
from cogview_jax.training.objective import ModelValues
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import TrainState

#: Images of a preview, each for a caption of the store.
PREVIEW_IMAGES = 8


class TransformerTask:
    """The training of a transformer; the interface is `tasks.task.Task`."""

    def __init__(self, experiment: TransformerExperiment, workdir: Workdir):
        """Composes the model, its layout and objective; `source` opens the data."""
        self.experiment = experiment
        self.layout = make_layout(experiment.layout, experiment.vocabulary)
        self.model = Transformer(
            experiment.model,
            experiment.vocabulary.size,
            self.layout.positions,
            policy(experiment.precision),
            experiment.vocabulary,
            experiment.programs(),
        )
        self.objective = self._make_objective()
        rate = experiment.model.weight_dropout
        if rate and self.model.programs.fused:
            log(
                f"attention_dropout {rate} keeps attention from being a fused kernel; 0 lets it be"
                " one, with which a step takes less time on GPUs"
            )
        self._workdir = workdir
        self._store, self._grids = store_path(experiment.data, workdir), experiment.image_grids
        self._held_out: Source[TokenRecord] | None = None
        self._prompts: list[str] = []

    def _make_objective(self) -> SequenceObjective:
        return SequenceObjective(self.model, self.layout, self.experiment.text_weight)

    def source(self) -> Source[TokenRecord]:
        """The records to train on: all but the held-out ones of the stores, or of rows."""
        source, views = self._opened()
        if given := self.experiment.train.sample_prompts:
            longest = self.layout.region("text").length
            self._prompts = read_sample_prompts(given, self._text(), longest)
        share = self.experiment.data.validation_share
        if not share:
            return source
        # All views of an image are held out, or none.
        training, self._held_out = split(source, share, views)
        return training

    def _opened(self) -> tuple[Source[TokenRecord], int | dict[str, int]]:
        """All records, and how many in a row are of one image; of a mixture by the part."""
        if self.experiment.data.mixture:
            return open_mixture(self.experiment, store_paths(self.experiment.data, self._workdir))
        if self._store.is_file():
            return self._release_rows(), 1
        store, meta = open_store(self.experiment, self._store)
        return store, meta.views

    def transform(self, record: TokenRecord, generator: np.random.Generator) -> Example:
        """The row of one of the record's captions, or none, and its codes or a window of them."""
        row = self._row(record, generator, self.experiment.drop_captions)
        if share := self.experiment.corrupt_codes:
            codes = self.layout.vocabulary.codes
            row = row._replace(tokens=corrupted(row.tokens, codes, share, generator))
        return row

    def _row(self, record: TokenRecord, generator: np.random.Generator, dropped: float) -> Example:
        """The same, with the caption left out in this share of the cases."""
        caption = record.captions[generator.integers(len(record.captions))]
        if generator.random() < dropped:
            caption = caption[:0]
        windows = random_window(
            code_grids(record.codes, self._grids),
            [region.grid for region in self.layout.images],
            generator,
        )
        regions = zip(self.layout.images, windows, strict=True)
        codes = {region.name: window.ravel() for region, window in regions}
        parts = {"text": caption} | codes
        return self.layout.example(parts, self.experiment.prompt_weight)

    def row_shapes(self) -> Example:
        """The shapes of what `transform` returns for any record."""
        parts = {region.name: [0] * region.length for region in self.layout.regions}
        example = self.layout.example(parts)
        return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), example)

    def check(self, bundle: Bundle) -> None:
        """InputError where a bundle has no transformer, or one that does not fit the config."""
        check_transformer(bundle, self.experiment)

    def initial(self, bundle: Bundle | None, state: TrainState) -> TrainState:
        """`state` with the parameters of another bundle, or with embeddings as the config says.

        The bundle's model is of the same sizes, but may have learned another number of positions:
        those that both have are taken over, further ones start as they are. Weights of any type
        become the master weights' float32. Says on standard error what this run changes: positions,
        types, and where it computes otherwise than the weights were trained.
        """
        if bundle is None:
            return self._with_code_embeddings(state)
        held = self.objective.bundle_values(state.values)
        given = held._replace(params=self._fitted(bundle, held.params, state.mesh))
        return state.with_values(self.objective.with_bundle_values(state.values, given))

    def stored(self, state: TrainState) -> TrainState:
        """All of it."""
        return state

    def restored(self, state: TrainState, shapes: TrainState) -> TrainState:
        """The state itself, since a checkpoint holds all of it."""
        return state

    def _fitted(self, bundle: Bundle, held: Any, mesh: jax.sharding.Mesh) -> Any:
        """The parameters of a bundle, of the shapes, type and places of `held`; see `initial`."""
        table = "position_embedding"
        here = held[table]
        part = bundle.transformer(mesh, here.dtype)
        params = dict(part.params)
        there = params.pop(table)
        different = different_model(part.config, self.experiment.model)
        changes = [f"{name} {before} -> {now}" for name, (before, now) in different.items()]
        known = min(len(there), len(here))
        if len(there) > len(here):
            cut = jax.jit(lambda there: there[:known], out_shardings=here.sharding)
            changes.append(f"positions {len(there)} -> {known} (those beyond are left out)")
            there = cut(there)
        if len(there) < len(here):
            there, fate = self._with_new_positions(bundle, there, here)
            changes.append(f"positions {known} -> {len(here)} ({fate})")
        stored = bundle.stored_type("transformer")
        if stored != here.dtype:
            changes.append(f"weights {stored} -> {here.dtype}")
        if changes:
            log(f"init_from {bundle.path}: this run changes {', '.join(changes)}")
        return params | {table: there}

    def _with_new_positions(
        self, bundle: Bundle, there: jax.Array, here: Any
    ) -> tuple[jax.Array, str]:
        """The positions of a bundle and the further ones of `here`; and what became of these."""
        extend = jax.jit(
            lambda here, there: here.at[: len(there)].set(there), out_shardings=here.sharding
        )
        return extend(here, there), "new ones start afresh"

    def validation_metrics(self) -> Sequence[str]:
        """The names of what `validation` measures."""
        if not self.experiment.train.validate_every:
            return ()
        return with_parts(HELD_OUT_LOSSES, sorted(self.experiment.data.mixture))

    def validation(self) -> HeldOutLoss | None:
        """What measures the held-out records of `source`; None where nothing is to be measured."""
        config, held_out = self.experiment.train, self._held_out
        if not config.validate_every:
            return None
        assert held_out is not None, "source() comes first"

        def row(record: TokenRecord, generator: np.random.Generator) -> Example:
            return self._row(record, generator, dropped=0.0)

        return HeldOutLoss(config, self.objective, held_out, row, self.row_shapes())

    def cogview(self, state: TrainState) -> CogView:
        """The transformer of `state` and the tokenizers that it is trained with."""
        codec = self._codec().codec(state.mesh)
        return CogView(codec=codec, text=self._text(), transformer=self._part(state))

    def preview(self, state: TrainState, source: Source[TokenRecord]) -> np.ndarray:
        """Samples for `preview_prompts`: uint8 [h, w, 3]."""
        model, prompts = self.cogview(state), self.preview_prompts(source)
        rows = min(len(prompts), PREVIEW_IMAGES)
        codes = model.generate_codes(prompts, batch_size=rows)
        images = model.decode(codes[:, 0])
        return np.asarray(caption_grid(list(images), prompts))

    def preview_prompts(self, source: Source[TokenRecord]) -> list[str]:
        """`train.sample_prompts`, or the first captions, those of held-out records first."""
        if self._prompts:
            return self._prompts
        text, longest = self._text(), self.layout.region("text").length
        shown = source if self._held_out is None else self._held_out
        captions = itertools.chain.from_iterable(map(_captions, (shown, source)))
        return [text.decode(x[:longest]) for x in itertools.islice(captions, PREVIEW_IMAGES)]

    def write(self, state: TrainState, path: Path) -> None:
        """Writes a bundle with the transformer and the tokenizers it was trained with."""
        write_bundle(
            path,
            codec=self._codec(),
            text=self._text(),
            transformer=self._stored_part(state),
            step=int(state.position),
        )

    def described(self, arrays: ModelValues) -> dict[str, dict[str, Any]]:
        """The transformer, whose arrays a checkpoint has, and where its tokenizers lie."""
        codec, text = self._codec(), self._text()
        file = codec.path / FILES["text"]
        if self._store.is_file():
            file = text_model(self.experiment.data.text_tokenizer).absolute()
        parts = {
            "codec": codec.parts["codec"] | {"paths": self._paths(codec.path / FILES["codec"])},
            "text": {"pieces": len(text), "sha256": text.sha256, "paths": self._paths(file)},
        }
        own = {name: part["sha256"] for name, part in parts.items()}
        entry = self._part_of(None).entry(self.model.positions)
        entry |= {"arrays": arrays.params, "trained_with": own}
        return parts | {"transformer": entry}

    def _paths(self, place: Path) -> list[str]:
        """Where a part may lie: as seen from a checkpoint of its workdir, or as it lies now."""
        within = place.is_relative_to(self._workdir.path)
        step = self._workdir.checkpoints / "STEP"
        return [*([os.path.relpath(place, step)] if within else []), str(place)]

    def _with_code_embeddings(self, state: TrainState) -> TrainState:
        """`state`; its code embeddings are made from the codec's vectors if the config says so."""
        experiment, name = self.experiment, "word_embedding"
        if experiment.code_embeddings == "normal":
            return state
        codec, model = self._codec().codec(state.mesh), experiment.model
        vectors = to_host(codec.vectors)
        rows = code_embeddings(vectors, model.width, model.init_std, experiment.seed)
        held = self.objective.bundle_values(state.values)
        table = held.params[name]
        # The codes are the first ids.
        replace = jax.jit(lambda here: here.at[: len(rows)].set(rows), out_shardings=table.sharding)
        given = held._replace(params=held.params | {name: replace(table)})
        return state.with_values(self.objective.with_bundle_values(state.values, given))

    def _part(self, state: TrainState) -> TransformerPart:
        return self._part_of(self.objective.bundle_values(state.values).params)

    def _stored_part(self, state: TrainState) -> TransformerPart:
        """The part as `write` takes it."""
        return self._part(state)

    def _part_of(self, params: Any) -> TransformerPart:
        """`params` with what the config says of them."""
        experiment = self.experiment
        return TransformerPart(
            experiment.model,
            experiment.vocabulary,
            experiment.layout,
            params,
            experiment.drop_captions,
            experiment.implementation,
            experiment.train.weights,
            experiment.sampling,
            tuple(self._prompts),
        )

    def _release_rows(self) -> CompactBinary | TokenLmdb:
        """The file of rows; it does not describe itself, so its sizes are those of the config."""
        experiment, text = self.experiment, self._text()
        if len(self.layout.images) != 1:
            raise InputError(
                f"data.store {self._store} is a file of the release, whose rows hold one image"
                f" each; a layout of task {experiment.layout.task} needs a store that prepare made"
            )
        given_codec(experiment)  # refuses one of other sizes
        if len(text) > experiment.vocabulary.text:
            raise InputError(
                f"the text tokenizer has {len(text)} pieces, but the config has vocabulary.text ="
                f" {experiment.vocabulary.text}"
            )
        image_length = math.prod(self._grids[0])
        if is_lmdb(self._store):
            return TokenLmdb(
                self._store,
                image_length=image_length,
                vocabulary=experiment.vocabulary,
                pieces=len(text),
            )
        return CompactBinary(
            self._store,
            image_length=image_length,
            codes=experiment.vocabulary.codes,
            pieces=len(text),
        )

    def _codec(self) -> Bundle:
        """The bundle that holds the codec of the data."""
        if self._store.is_file():
            return given_codec(self.experiment)
        return Bundle(self._store / TOKENIZERS)

    def _text(self) -> TextTokenizer:
        """The text tokenizer of the data."""
        if not self._store.is_file():
            return Bundle(self._store / TOKENIZERS).text()
        if not self.experiment.data.text_tokenizer:
            raise InputError(
                f"data.text_tokenizer is empty: name the SentencePiece model that {self._store} was"
                " made with, such as --config.data.text_tokenizer=cog-pretrain.model"
            )
        return given_text(self.experiment.data)


def _captions(source: Source[TokenRecord]) -> Iterator[np.ndarray]:
    """One caption of each readable record: the first, the second, and so on in turn."""
    for i, record in enumerate(in_turn(source)):
        yield record.captions[i % len(record.captions)]
