"""What a bundle has parts of: an image tokenizer and a transformer, each with what describes it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from cogview_jax.checkpoints.description import TransformerEntry
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.implementation import ImplementationConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.sampling.options import SamplingSettings
from cogview_jax.tokenizers.codecs.codec import CodecConfig
from cogview_jax.tokenizers.layout import LayoutConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True)
class CodecPart:
    """An image tokenizer: its sizes, parameters, and the state of its quantiser.

    weights, of a run that kept a moving average of them: "ema" if the parameters are that average,
    "last" if not.
    """

    config: CodecConfig
    params: Any
    codebook: Any
    weights: str | None = None

    @property
    def vectors(self) -> jax.Array:
        """What the decoder reads for each code, float32 [codes, width], whatever the quantiser."""
        quantiser, own = self.config.quantiser, self.params.get("quantiser", {})
        return quantiser.vectors(own, self.codebook, np.arange(self.config.codebook))


@dataclass(frozen=True)
class TransformerPart:
    """A transformer: its sizes, the sequence it was trained on, and its parameters.

    drop_captions is the share of rows that were trained without their text, None where nobody says;
    sampling says how it is best sampled; weights is as in `CodecPart`; prompts are examples, which
    its run was given for its samples; implementation, which no bundle holds, asks for the programs
    that run the transformer here.
    The parameters are stacked by layer, as training has them and `write_bundle` takes them, or in
    the form of `models.layer_params.unstack_arrays`.
    """

    config: TransformerConfig
    vocabulary: Vocabulary
    layout: LayoutConfig
    params: Any
    drop_captions: float | None = None
    implementation: ImplementationConfig = ImplementationConfig()
    weights: str | None = None
    sampling: SamplingSettings = SamplingSettings()
    prompts: tuple[str, ...] = ()

    @classmethod
    def described(cls, entry: TransformerEntry, params: Any) -> "TransformerPart":
        """`params` with what bundle.json says of them."""
        return cls(
            entry.config,
            entry.vocabulary,
            entry.layout,
            params,
            entry.drop_captions,
            weights=entry.weights,
            sampling=entry.sampling,
            prompts=entry.prompts,
        )

    def entry(self, positions: int) -> dict[str, Any]:
        """What bundle.json says of a transformer with so many positions, but for hashes."""
        entry = {
            "config": dataclasses.asdict(self.config),
            "vocabulary": dataclasses.asdict(self.vocabulary),
            "layout": dataclasses.asdict(self.layout),
            "positions": positions,
        }
        if self.drop_captions is not None:
            entry["drop_captions"] = self.drop_captions
        if self.sampling.given:
            entry["sampling"] = self.sampling.given
        if self.prompts:
            entry["prompts"] = list(self.prompts)
        return entry if self.weights is None else entry | {"weights": self.weights}

    @property
    def model(self) -> Transformer:
        """The module of the parameters, which have as many positions as were learned."""
        positions = self.params["position_embedding"].shape[0]
        return Transformer(self.config, self.vocabulary.size, positions, vocabulary=self.vocabulary)
