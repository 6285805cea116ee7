"""The bundle that a run starts from, `init_from`: whether it fits the config, and what is new."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.parameter_shapes import transformer_shapes
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.experiment import TransformerExperiment
from cogview_jax.tokenizers.codecs.codec import CodecConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary

#: Settings of a model in which it may differ from the bundle of `init_from` without notice.
INIT_FROM_IGNORED = (
    "dropout",
    "attention_dropout",
    "init_std",
    "sandwich_scale",
    "remat",
    "unroll",
)
#: By dotted name, the bundle's value of a setting and the config's.
Differences = dict[str, tuple[Any, Any]]


def check_codec(bundle: Bundle, config: CodecConfig) -> None:
    """InputError where the image tokenizer of a bundle is another than the config's."""
    _refuse(bundle, different_codec(bundle.codec_config(), config))


def check_transformer(bundle: Bundle, experiment: TransformerExperiment) -> None:
    """InputError where the parameters of a bundle's transformer do not fit the config's.

    The number of positions may be another. Nothing of the parameters is read.
    """
    part = bundle.described_transformer()
    there, here = part.vocabulary, experiment.vocabulary
    if there == here and _sizes(part.config, there) == _sizes(experiment.model, here):
        return
    _refuse(
        bundle,
        different_model(part.config, experiment.model)
        | _different("vocabulary", dataclasses.asdict(there), dataclasses.asdict(here)),
    )


def different_model(there: TransformerConfig, here: TransformerConfig) -> Differences:
    """The settings in which two transformers differ, without INIT_FROM_IGNORED."""
    one, other = (
        {name: x for name, x in dataclasses.asdict(config).items() if name not in INIT_FROM_IGNORED}
        for config in (there, here)
    )
    return _different("model", one, other)


def different_codec(there: CodecConfig, here: CodecConfig) -> Differences:
    """The settings that weights depend on and in which two image tokenizers differ.

    Weights depend neither on the size of images nor on how a quantiser's codes are learned.
    """
    if there.kind != here.kind:
        return {"model.kind": (there.kind, here.kind)}
    one, other = dataclasses.asdict(there), dataclasses.asdict(here)
    for settings in (one, other):
        del settings["image_size"]
    quantisers = one.pop("quantiser"), other.pop("quantiser")
    found = _different("model", one, other)
    if not there.quantiser.same_codes(here.quantiser):
        of_quantiser = _different("model.quantiser", *quantisers)
        kind = "model.quantiser.kind"
        found |= {kind: of_quantiser[kind]} if kind in of_quantiser else of_quantiser
    return found


def _different(section: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> Differences:
    return {
        f"{section}.{name}": (value, here[name])
        for name, value in there.items()
        if name in here and value != here[name]
    }


def _refuse(bundle: Bundle, different: Differences) -> None:
    if different:
        shown = [f"{name} = {one!r} (not {other!r})" for name, (one, other) in different.items()]
        raise InputError(
            f"init_from {bundle.path} does not fit the config: it has {', '.join(shown)}; give the"
            " config these values, or name another bundle"
        )


def _sizes(config: TransformerConfig, vocabulary: Vocabulary) -> Any:
    """The shapes of the parameters, of one position."""
    model = Transformer(config, vocabulary.size, 1, vocabulary=vocabulary)
    return jax.tree.map(lambda leaf: leaf.shape, unbox(transformer_shapes(model)))
