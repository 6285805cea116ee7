"""Stage 1 as a job: what training an image tokenizer reads, draws and leaves."""

import itertools
from pathlib import Path

import jax
import numpy as np

from cogview_jax.checkpoints.bundle import Bundle, CodecPart, write_bundle
from cogview_jax.data.records import Record
from cogview_jax.data.sources.source import Source, readable
from cogview_jax.data.transforms import SquareView
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import policy
from cogview_jax.tasks.experiment import CodecExperiment
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.codec import Codec
from cogview_jax.training.codec_objective import CodecObjective
from cogview_jax.training.state import TrainState

#: Pictures drawn beside their reconstructions.
DRAWN = 8


class ImageTokenizerJob:
    """An image tokenizer in training; the interface is `jobs.train.Job`."""

    def __init__(self, experiment: CodecExperiment, workdir: Workdir):
        """Composes the codec and its objective; the data is opened by `source`."""
        self.experiment = experiment
        self.codec = Codec(experiment.model, policy(experiment.precision).compute)
        self.objective = CodecObjective(
            self.codec,
            global_batch=experiment.train.global_batch,
            commitment=experiment.loss.commitment,
            decay=experiment.loss.decay,
            revive_below=experiment.loss.revive_below,
        )
        data = experiment.data
        self._view = SquareView(experiment.model.image_size, data.smallest_crop, data.flip)

    def source(self) -> Source[Record]:
        """The pictures."""
        return self.experiment.data.source.open()

    def transform(self, record: Record, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """A picture as the codec sees it."""
        return {"image": self._view(record.image, generator)}

    def row_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The fields of a row, as `transform` gives them for any record."""
        size = self.experiment.model.image_size
        return {"image": jax.ShapeDtypeStruct((size, size, 3), np.uint8)}

    def initial(self, bundle: Bundle | None, state: TrainState) -> TrainState:
        """`state` with the parameters and codebook of another bundle, or as it is."""
        if bundle is None:
            return state
        part = bundle.codec(state.step.sharding.mesh)
        if part.config != self.experiment.model:
            raise InputError(
                f"init_from {bundle.path} holds a codec with {part.config}, but the config says"
                f" {self.experiment.model}"
            )
        place = jax.tree.map(lambda leaf: leaf.sharding, (state.params, state.extras))
        params, extras = jax.device_put((part.params, part.codebook), place)
        return state.replace(params=params, extras=extras)

    def draw(self, state: TrainState, source: Source[Record]) -> np.ndarray:
        """The first pictures that can be read, above their reconstructions: uint8 [h, w, 3]."""
        still = SquareView(self.experiment.model.image_size)
        rng = np.random.default_rng(0)
        records = itertools.islice(readable(source), DRAWN)
        pictures = np.stack([still(record.image, rng) for record in records])
        count = len(pictures)
        model = CogView(codec=self._part(state))
        decoded = model.decode(model.encode(pictures))
        labels = ["picture"] * count + ["reconstruction"] * count
        return np.asarray(caption_grid([*pictures, *decoded], labels, columns=count))

    def write(self, state: TrainState, path: Path) -> None:
        """Leaves a bundle with the codec alone."""
        write_bundle(path, codec=self._part(state), step=int(state.position))

    def _part(self, state: TrainState) -> CodecPart:
        return CodecPart(self.experiment.model, state.params, state.extras)
