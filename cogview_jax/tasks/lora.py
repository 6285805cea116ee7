"""The task of stage 2 with low-rank adapters: the transformer of `init_from` is not changed."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cogview_jax.checkpoints.adapted import merged_on_host
from cogview_jax.checkpoints.adapter import write_adapter
from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import TransformerPart
from cogview_jax.checkpoints.step_bundle import open_bundle
from cogview_jax.data.remote.addresses import is_address
from cogview_jax.models.lora import NEW_POSITIONS, fit_positions, merged
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import to_host
from cogview_jax.runtime.paths import named_by
from cogview_jax.runtime.processes import is_primary
from cogview_jax.tasks.transformer import TransformerTask
from cogview_jax.training.lora_objective import LoRAObjective
from cogview_jax.training.objective import ModelValues
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import TrainState

#: The folder of the adapter, beside the bundle.
ADAPTER = "adapter"
#: What a checkpoint holds in the place of the frozen parameters: the hash of their part, uint8.
BASE = "base_sha256"


class LoRATask(TransformerTask):
    """The training of adapters (`models.lora`).

    The frozen parameters are the model state. A checkpoint holds their hash instead of them, and
    they are read again from the bundle of `init_from`, which has to stay where it is.
    """

    def _make_objective(self) -> SequenceObjective:
        experiment = self.experiment
        return LoRAObjective(self.model, self.layout, experiment.text_weight, experiment.lora)

    def initial(self, bundle: Bundle | None, state: TrainState) -> TrainState:
        """`state` with the frozen parameters of another bundle.

        Raises:
            InputError: see `TransformerTask.initial`; or a sequence has more than `NEW_POSITIONS`
                positions that the bundle's model has not learned.
        """
        assert bundle is not None, "the schema asks for one"
        shapes = jax.tree.map(_shape, state.model_state)
        for leaf in jax.tree.leaves(state.model_state):
            leaf.delete()  # zeros, of which there should be no second copy
        return self._with_base(bundle, state, shapes)

    def stored(self, state: TrainState) -> TrainState:
        """The state with the hash of its base in the place of the base."""
        digest = np.frombuffer(bytes.fromhex(self._base.sha256("transformer")), np.uint8)
        where = state.step.sharding
        if isinstance(state.step, jax.ShapeDtypeStruct):
            base: Any = jax.ShapeDtypeStruct(digest.shape, digest.dtype, sharding=where)
        else:
            base = jax.device_put(digest, where)
        return state.with_values(state.values._replace(model_state={BASE: base}))

    def restored(self, state: TrainState, shapes: TrainState) -> TrainState:
        """The state of a checkpoint with the base of its adapters.

        Raises:
            InputError: the bundle of `init_from` is another than the one that was adapted.
        """
        there, here = to_host(state.model_state[BASE]).tobytes().hex(), self._base
        if there != here.sha256("transformer"):
            raise InputError(
                f"init_from {here.path} holds transformer {here.sha256('transformer')[:12]}, but"
                f" the adapters of this run are of transformer {there[:12]}"
            )
        return self._with_base(here, state, shapes.model_state)

    def write(self, state: TrainState, path: Path) -> None:
        """Writes the adapter beside the bundle, and a bundle with the merged transformer."""
        adapters = jax.tree.map(to_host, state.params)
        if is_primary():
            write_adapter(
                path.with_name(ADAPTER),
                adapters,
                self.experiment.lora,
                self._part_of(state.model_state),
                base=self._base.sha256("transformer"),
                base_path=self.experiment.init_from,
                step=int(state.position),
            )
        super().write(state, path)

    def described(self, arrays: ModelValues) -> dict[str, dict[str, Any]]:
        """As of a run without adapters; beside their arrays stands what they are merged into."""
        parts = super().described(arrays)
        given = self.experiment.init_from
        parts["transformer"]["adapts"] = {
            "path": given if is_address(given) else str(self._base.path),
            "sha256": self._base.sha256("transformer"),
            "lora": dataclasses.asdict(self.experiment.lora),
        }
        return parts

    @functools.cached_property
    def _base(self) -> Bundle:
        with named_by("init_from", self.experiment.init_from):
            return open_bundle(self.experiment.init_from)

    def _with_base(self, bundle: Bundle, state: TrainState, shapes: Any) -> TrainState:
        base = self._fitted(bundle, shapes, state.mesh)
        return state.with_values(state.values._replace(model_state=base))

    def _with_new_positions(
        self, bundle: Bundle, there: jax.Array, here: Any
    ) -> tuple[jax.Array, str]:
        if len(here) > len(there) + NEW_POSITIONS:
            raise InputError(
                f"init_from {bundle.path} has learned {len(there)} positions, but a sequence of the"
                f" layout has {len(here)}, and frozen ones cannot be learned: set lora.rank to 0"
            )
        fit = jax.jit(fit_positions, static_argnums=1, out_shardings=here.sharding)
        return fit(there, len(here)), "new ones are as the last, and stay so"

    def _part(self, state: TrainState) -> TransformerPart:
        """The merged transformer, on the devices of the state."""
        places = jax.tree.map(lambda leaf: leaf.sharding, state.model_state)
        merge = jax.jit(merged, static_argnums=2, out_shardings=places)
        return self._part_of(merge(state.model_state, state.params, self.experiment.lora.scale))

    def _stored_part(self, state: TrainState) -> TransformerPart:
        """The merged transformer, one array at a time where one process has all of them.

        A float32 copy of the whole model may have no room on a device that trains adapters.
        """
        if jax.process_count() > 1:
            return self._part(state)
        adapters = jax.tree.map(to_host, state.params)
        params = merged_on_host(state.model_state, adapters, self.experiment.lora)
        return self._part_of(params)


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
