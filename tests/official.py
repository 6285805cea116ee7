"""The official fixtures' transformers, as the library reads them."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.interop.official.sizes import infer_layout
from cogview_jax.interop.official.transformer import RULES, OfficialTransformer
from cogview_jax.interop.rules import flat, tensor_sources
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.tokenizers.vocabulary import Vocabulary


def sizes(fixtures: Path) -> dict:
    """What config.json says of the set."""
    return json.loads((fixtures / "config.json").read_text("utf-8"))["config"]


def vocabulary(fixtures: Path) -> Vocabulary:
    """The ids of the small models."""
    return Vocabulary(sizes(fixtures)["n_img"], sizes(fixtures)["n_txt"])


def transformer(fixtures: Path, name: str = "transformer") -> tuple[Transformer, dict]:
    """(model, params): the weights in FIXTURES/name, with the release's arithmetic."""
    found = OfficialTransformer.open(fixtures / name)
    layout = infer_layout(found.positions, 1, "text_to_image")  # not looked at
    part = found.part(sizes(fixtures)["heads"], vocabulary(fixtures), layout)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf.make()), part.params)
    # Nothing is dropped, and no layer computed twice.
    config = dataclasses.replace(part.config, dropout=0.0, remat="none")
    return part.model.clone(config=config), params


def own_arithmetic(config: TransformerConfig) -> TransformerConfig:
    """The same sizes with a LayerNorm that is causal."""
    return dataclasses.replace(config, compat="none", pb_relax_norm=True)


def by_official_name(tree: dict) -> dict[str, np.ndarray]:
    """Official name -> array in the official form, of a tree like the parameters."""
    leaves = flat(tree)
    named = {}
    for name, (rule, layer, _) in tensor_sources(RULES, tree).items():
        array = np.asarray(leaves[rule.ours])
        named[name] = rule.form.theirs(array if layer is None else array[layer])
    return named
