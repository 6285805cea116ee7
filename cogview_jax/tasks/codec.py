"""The task of stage 1: an image tokenizer, its images, previews and bundle."""

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.checkpoints.bundle_writer import codec_entry, write_bundle
from cogview_jax.data.filters import filtered
from cogview_jax.data.held_out import split
from cogview_jax.data.records import Record
from cogview_jax.data.sources.mixture import in_turn
from cogview_jax.data.sources.source import Source, opened, readable
from cogview_jax.data.transforms import SquareView
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import named_by
from cogview_jax.runtime.precision import policy
from cogview_jax.tasks.experiment import CodecExperiment
from cogview_jax.tasks.init_from import check_codec
from cogview_jax.tasks.validation import ImageValidation, image_metrics
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.training.codec_loss import VQGANLoss
from cogview_jax.training.codec_objective import CodecObjective, ImageExample
from cogview_jax.training.decoder_objective import DecoderObjective
from cogview_jax.training.objective import ModelValues, Objective
from cogview_jax.training.state import TrainState
from cogview_jax.training.vqgan_objective import VQGANObjective

#: Images of a preview, which are shown with their reconstructions and the differences of both.
PREVIEW_IMAGES = 8
#: What differences are multiplied by, so that small ones can be seen.
DIFFERENCE_GAIN = 4


def make_objective(experiment: CodecExperiment) -> Objective[ImageExample]:
    """The objective that the experiment's loss asks for.

    Raises:
        InputError: the weights of LPIPS cannot be read, or the images are too small for the loss.
    """
    objective = _objective_of_all(experiment)
    return DecoderObjective(objective) if experiment.loss.decoder_only else objective


def _objective_of_all(experiment: CodecExperiment) -> CodecObjective:
    """The objective with the parameters of all parts, whatever of them is trained."""
    codec, loss = experiment.model.module(policy(experiment.precision).compute), experiment.loss
    batch = experiment.train.global_batch
    if not isinstance(loss, VQGANLoss):
        fixed = loss.decoder_only
        return CodecObjective(codec, global_batch=batch, codebook=loss, fixed_codes=fixed)
    weights = None
    if loss.adversarial.perceptual_weight > 0:
        if not loss.perceptual:
            raise InputError(
                "loss.perceptual is empty: expected a file with the weights of LPIPS (see"
                " docs/guides/image_tokenizers.md), or loss.adversarial.perceptual_weight = 0"
            )
        with named_by("loss.perceptual", loss.perceptual):
            weights = read_lpips(loss.perceptual)
    return VQGANObjective(codec, global_batch=batch, loss=loss, perceptual=weights)


class CodecTask:
    """The training of an image tokenizer; the interface is `tasks.task.Task`."""

    def __init__(self, experiment: CodecExperiment, workdir: Workdir):
        """Composes the codec and its objective; `source` opens the data."""
        self.experiment = experiment
        self.objective: Objective[ImageExample] = make_objective(experiment)
        data = experiment.data
        size = experiment.model.image_size
        self._view = SquareView(size, data.smallest_crop, data.flip, data.crop)
        self._held_out: Source[Record] | None = None

    def source(self) -> Source[Record]:
        """The images to train on: all but the held-out ones."""
        data = self.experiment.data
        source = filtered(opened(data.source), data.filter)
        if not data.validation_share:
            return source
        training, self._held_out = split(source, data.validation_share)
        return training

    def validation_metrics(self) -> list[str]:
        """The names of what `validation` measures."""
        return image_metrics(self.experiment) if self.experiment.train.validate_every else []

    def validation(self) -> ImageValidation | None:
        """What measures the held-out images of `source`; None where nothing is to be measured."""
        if not self.experiment.train.validate_every:
            return None
        assert self._held_out is not None, "source() comes first"
        return ImageValidation(self.experiment, self.objective, self._held_out)

    def transform(self, record: Record, generator: np.random.Generator) -> ImageExample:
        """A square of an image, of the codec's size."""
        return ImageExample(self._view(record.image, generator))

    def row_shapes(self) -> ImageExample:
        """The shapes of what `transform` returns for any record."""
        size = self.experiment.model.image_size
        return ImageExample(jax.ShapeDtypeStruct((size, size, 3), np.uint8))

    def check(self, bundle: Bundle) -> None:
        """InputError where the image tokenizer of a bundle is another than the config's."""
        check_codec(bundle, self.experiment.model)

    def initial(self, bundle: Bundle | None, state: TrainState) -> TrainState:
        """`state` with the parameters and codebook of another bundle, or as it is."""
        if bundle is None:
            return state
        part = bundle.codec(state.mesh)
        held = self.objective.bundle_values(state.values)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, held)
        given = jax.device_put(ModelValues(part.params, part.codebook), shardings)
        return state.with_values(self.objective.with_bundle_values(state.values, given))

    def stored(self, state: TrainState) -> TrainState:
        """All of it."""
        return state

    def restored(self, state: TrainState, shapes: TrainState) -> TrainState:
        """The state itself, since a checkpoint holds all of it."""
        return state

    def cogview(self, state: TrainState) -> CogView:
        """The image tokenizer of `state`."""
        return CogView(codec=self._part(state))

    def preview(self, state: TrainState, source: Source[Record]) -> np.ndarray:
        """Images above their reconstructions and the absolute errors of these: uint8 [h, w, 3].

        They are the first readable held-out images, or those of `source` where there are none; of a
        mixture those of its parts in turn.
        """
        still = self._view.still()
        rng = np.random.default_rng(0)
        held_out = self._held_out
        if held_out is not None and next(readable(held_out), None) is None:
            held_out = None
        shown = source if held_out is None else held_out
        records = itertools.islice(in_turn(shown), PREVIEW_IMAGES)
        images = np.stack([still(record.image, rng) for record in records])
        count = len(images)
        model = self.cogview(state)
        decoded = model.decode(model.encode(images))
        errors = np.abs(images.astype(np.int32) - decoded)
        differences = np.minimum(DIFFERENCE_GAIN * errors, 255).astype(np.uint8)
        image = "image" if held_out is None else "held-out image"
        labels = [image, "reconstruction", f"absolute error x {DIFFERENCE_GAIN}"]
        captions = [label for label in labels for _ in range(count)]
        return np.asarray(caption_grid([*images, *decoded, *differences], captions, columns=count))

    def write(self, state: TrainState, path: Path) -> None:
        """Writes a bundle with the codec alone."""
        write_bundle(path, codec=self._part(state), step=int(state.position))

    def described(self, arrays: ModelValues) -> dict[str, dict[str, Any]]:
        """The codec, all of whose arrays a checkpoint has."""
        names = {"params": arrays.params, "codebook": arrays.model_state._asdict()}
        part = CodecPart(self.experiment.model, None, None, self.experiment.train.weights)
        return {"codec": codec_entry(part) | {"arrays": names}}

    def _part(self, state: TrainState) -> CodecPart:
        params, codebook = self.objective.bundle_values(state.values)
        return CodecPart(self.experiment.model, params, codebook, self.experiment.train.weights)
