"""The official transformer's checkpoints: DIRECTORY/ITERATION/mp_rank_00_model_states.pt.

A tracker file in DIRECTORY names the iteration. The file is DeepSpeed's, a dict whose `module` is
the state dict; what stands beside it belongs to a training run and is dropped. The weights hold
neither the number of heads nor how vocabulary and positions are divided.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.checkpoints.bundle_parts import TransformerPart
from cogview_jax.interop.rules import (
    FUSED,
    FUSED_BIAS,
    LINEAR,
    SAME,
    TABLE,
    Rule,
    required,
    to_ours,
    to_theirs,
)
from cogview_jax.interop.torch_format.file import read_torch, write_torch
from cogview_jax.interop.torch_format.pickle import Slot
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.conventions import RELEASE
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import read_regular
from cogview_jax.runtime.paths import inside
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.layout import LayoutConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary

TRACKER = "latest_checkpointed_iteration.txt"
TRACKER_BYTES = 4096
STATES = "mp_rank_{:02d}_model_states.pt"
#: What the released code has without a choice.
MLP_RATIO, EPSILON = 4, 1e-5

_LAYER, _BLOCK = "transformer.layers.{}.", "blocks.block."


def _layer(official: str, ours: str, weight=LINEAR, bias=SAME) -> tuple[Rule, Rule]:
    kind = "scale" if weight is SAME else "kernel"
    return (
        Rule(f"{_LAYER}{official}.weight", f"{_BLOCK}{ours}.{kind}", weight),
        Rule(f"{_LAYER}{official}.bias", f"{_BLOCK}{ours}.bias", bias),
    )


RULES = (
    Rule("word_embeddings.weight", "word_embedding", TABLE),
    Rule("transformer.position_embeddings.weight", "position_embedding", TABLE),
    *_layer("input_layernorm", "attention_in", SAME),
    *_layer("attention.query_key_value", "attention.qkv", FUSED, FUSED_BIAS),
    *_layer("attention.dense", "attention.out"),
    *_layer("post_attention_layernorm", "mlp_in", SAME),
    *_layer("third_layernorm", "attention_out", SAME),
    *_layer("fourth_layernorm", "mlp_out", SAME),
    *_layer("mlp.dense_h_to_4h", "mlp.up"),
    *_layer("mlp.dense_4h_to_h", "mlp.down"),
    Rule("transformer.final_layernorm.weight", "final_norm.scale", SAME),
    Rule("transformer.final_layernorm.bias", "final_norm.bias", SAME),
)


@dataclass(frozen=True)
class OfficialTransformer:
    """An official checkpoint, opened: no tensor is read yet.

    iteration: the name of its folder. dropped: what stands beside the weights in the file.
    """

    file: Path
    iteration: str
    state: Mapping[str, Any]
    dropped: tuple[str, ...]

    @classmethod
    def open(cls, directory: Path | str) -> "OfficialTransformer":
        """Opens what the tracker file in `directory` names.

        Raises:
            InputError: there is none, it is split over several files, or it is no such file.
        """
        tracker = Path(directory) / TRACKER
        if not tracker.is_file():
            raise InputError(f"{directory} holds no official transformer: there is no {TRACKER}")
        iteration = read_regular(inside(directory, TRACKER), TRACKER_BYTES).decode(errors="replace")
        iteration = _checked(iteration.strip(), str(tracker))
        folder = inside(directory, iteration)
        if not folder.is_dir():
            raise InputError(f"{tracker} names iteration {iteration}, but there is no {folder}")
        if (folder / STATES.format(1)).exists():
            raise InputError(
                f"{folder} is split over several devices ({STATES.format(1)} is there too): merge"
                " it with the official code first, to a model-parallel size of 1"
            )
        file = inside(directory, f"{iteration}/{STATES.format(0)}")
        content = read_torch(file)
        state = content.get("module") if isinstance(content, dict) else None
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise InputError(f"{file} has no 'module' that is a state dict")
        return cls(file, iteration, state, _named(content))

    @property
    def vocabulary_size(self) -> int:
        """Ids of the vocabulary, padding included."""
        return required(self.state, "word_embeddings.weight", 2, str(self.file))[0]

    @property
    def positions(self) -> int:
        """How many positions were learned."""
        return required(self.state, "transformer.position_embeddings.weight", 2, str(self.file))[0]

    def part(self, heads: int, vocabulary: Vocabulary, layout: LayoutConfig) -> TransformerPart:
        """The transformer, its arrays `Deferred` and in their own types.

        Raises:
            InputError: a tensor is missing, unknown or of another shape than the rest; or `heads`
                do not divide the width.
        """
        where = str(self.file)
        width = required(self.state, "word_embeddings.weight", 2, where)[1]
        layers = self._layers()
        up = "transformer.layers.0.mlp.dense_h_to_4h.weight"
        hidden = required(self.state, up, 2, where)[0]
        if hidden % width:
            raise InputError(f"{where}: {up} has {hidden} rows, expected a multiple of {width}")
        config = TransformerConfig(
            layers=layers,
            width=width,
            heads=heads,
            mlp_ratio=hidden // width,
            pb_relax_norm=False,
            pb_relax_attention=False,
            embedding_gradient=1.0,
            epsilon=EPSILON,
            compat="official",
        )
        model = Transformer(config, vocabulary.size, self.positions)
        shapes = unbox(transformer_shapes(model))
        params = to_ours(RULES, self.state, shapes, where)
        return TransformerPart(config, vocabulary, layout, params)

    def _layers(self) -> int:
        """How many layers there are; InputError where they are not 0 to the last."""
        found = (re.match(r"transformer\.layers\.([0-9]{1,6})\.", name) for name in self.state)
        numbers = sorted({int(match[1]) for match in found if match})
        if not numbers or numbers != list(range(len(numbers))):
            raise InputError(
                f"{self.file} has the layers {', '.join(map(str, numbers)) or '(none)'}: expected"
                " 0, 1 and so on, without a gap"
            )
        return len(numbers)


def _named(content: Mapping[Any, Any]) -> tuple[str, ...]:
    """The names of what stands beside the weights."""
    names = (key[:60] if isinstance(key, str) else type(key).__name__ for key in content)
    return tuple(name for name in names if name != "module")


def _checked(iteration: str, where: str) -> str:
    """The name of an iteration's folder: a number in files that training left."""
    if not re.fullmatch(r"[0-9A-Za-z_-]{1,60}", iteration):
        raise InputError(f"{where} names iteration {iteration[:60]!r}, expected a number")
    return iteration


def write_transformer(directory: Path, part: TransformerPart, iteration: str) -> None:
    """Writes the tracker file and the checkpoint of `iteration`; `part` is of `Deferred`s.

    Raises:
        InputError: as `named_tensors`.
    """
    state, arrays = named_tensors(part)
    folder = directory / _checked(iteration, "bundle.json")
    content: dict[str, Any] = {"module": state}
    if iteration.isdecimal():
        content["iteration"] = int(iteration)
    write_torch(folder / STATES.format(0), content, arrays)
    (directory / TRACKER).write_text(iteration, encoding="utf-8")


def named_tensors(
    part: TransformerPart,
) -> tuple[dict[str, Slot], Iterator[tuple[Slot, np.ndarray]]]:
    """The release's state dict of a transformer of `Deferred`s, as `rules.to_theirs` gives it.

    Raises:
        InputError: the released code cannot hold this architecture.
    """
    config = part.config
    if not config.sandwich_ln:
        raise InputError("the official code has no transformer without sandwich_ln")
    if config.mlp_ratio != MLP_RATIO:
        raise InputError(f"the official code has mlp_ratio {MLP_RATIO}, not {config.mlp_ratio}")
    return to_theirs(RULES, part.params)


def differences(config: TransformerConfig) -> list[str]:
    """What the released code computes otherwise than a model was trained to, in words."""
    if config.conventions == RELEASE:
        return []
    found = [
        "its LayerNorm divides by the largest value of the whole batch: an outlier changes the"
        " results of other tokens"
    ]
    if config.pb_relax_attention:
        found.append(
            "its attention has no PB-relax: the same in exact arithmetic, but float16 may overflow"
        )
    if config.sparse:
        found.append("its attention is dense, and its own sparse form weighs pivots otherwise")
    if config.epsilon != EPSILON:
        found.append(f"its LayerNorm's epsilon is {EPSILON}, not {config.epsilon}")
    return found
