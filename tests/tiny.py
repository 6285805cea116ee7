"""Models that train or draw within a test: the two objectives, batches for them, and tokens."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import reference
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.implementation import Implementation
from cogview_jax.models.layer_params import unstack_layers
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.precision import FLOAT32, Policy
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.decode import generate, sample_keys
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.codecs.vqvae import VQVAE, VQVAEConfig
from cogview_jax.tokenizers.layout import Example, LayoutConfig, left_padded, make_layout
from cogview_jax.tokenizers.quantisers.quantiser import CodebookTraining
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.codec_objective import CodecObjective, ImageExample
from cogview_jax.training.objective import Objective
from cogview_jax.training.optimizer import OptimizerConfig
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import TrainState, initial_state
from cogview_jax.training.step import make_step

BATCH = 16

VOCABULARY = Vocabulary(codes=64, text=29)  # 120 ids, padded to 128
LAYOUT = LayoutConfig(text_length=5, grid=2)  # 13 tokens
TRANSFORMER = TransformerConfig(layers=2, width=32, heads=4, dropout=0.0, remat="none")
CODEC = VQVAEConfig(
    image_size=8, downsampling=2, channels=16, residual_blocks=1, codebook=32, code_width=8
)

#: Where a gradient is zero but for rounding (that of the keys' bias is), Adam makes steps of its
#: sign. An epsilon well above rounding keeps two ways of adding up comparable.
OPTIMIZER = OptimizerConfig(lr=1e-2, warmup=0.0, epsilon=1e-3)


def transformer_objective(
    config: TransformerConfig = TRANSFORMER,
    policy: Policy = FLOAT32,
    implementation: Implementation | None = None,
) -> SequenceObjective:
    """Weights of text unlike those of images, so that neither can be mistaken for the other."""
    layout = make_layout(LAYOUT, VOCABULARY)
    model = Transformer(config, VOCABULARY.size, layout.length, policy, VOCABULARY, implementation)
    return SequenceObjective(model, layout, 3.0)


def codec_objective(revive_below: float = 0.5) -> CodecObjective:
    """Codes move often, so that moving is tested too."""
    return CodecObjective(
        VQVAE(CODEC), global_batch=BATCH, codebook=CodebookTraining(revive_below=revive_below)
    )


def start(objective: Objective[Any]) -> TrainState:
    """A state before step 0 without an optimizer's, drawn by numpy: nothing is compiled."""
    rng = np.random.default_rng(0)
    params, model_state = jax.eval_shape(objective.init, jax.random.key(0))

    def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return (centre + 0.2 * rng.standard_normal(leaf.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(fill, unbox(params))
    if model_state:
        model_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model_state)
        codes = rng.standard_normal(model_state.codes.shape).astype(np.float32)
        model_state = model_state._replace(codes=codes, error=np.float32(np.inf))
    return TrainState(np.int32(0), params, (), model_state)


def sequences(step: int, rows: int = BATCH) -> Example:
    """Captions of 1 to 5 pieces: rows of different weights."""
    rng = np.random.default_rng([1, step])
    layout = make_layout(LAYOUT, VOCABULARY)
    examples = [
        layout.example(
            {
                "text": rng.integers(VOCABULARY.text, size=1 + row * 5 // rows),
                "image": rng.integers(VOCABULARY.codes, size=4),
            }
        )
        for row in range(rows)
    ]
    return stacked(examples)


def stacked(examples: Sequence[Example]) -> Example:
    """A batch of rows."""
    return Example(*map(np.stack, zip(*examples, strict=True)))


def images(step: int, rows: int = BATCH) -> ImageExample:
    """Noise, of which rows have more or less."""
    rng = np.random.default_rng([2, step])
    noise = rng.integers(256, size=(rows, CODEC.image_size, CODEC.image_size, 3))
    strength = np.linspace(0.1, 1, rows)[:, None, None, None]
    return ImageExample((noise * strength).astype(np.uint8))


def first_loss() -> float:
    """Of a fresh transformer on its first batch, with dropout: what keys do to a run."""
    objective = transformer_objective(dataclasses.replace(TRANSFORMER, layers=1, dropout=0.1))
    state = jax.jit(lambda: unbox(initial_state(objective, optax.sgd(1.0), 3)))()
    step = jax.jit(make_step(objective, optax.sgd(1.0), optax.constant_schedule(1.0), seed=3))
    return float(step(state, sequences(0))[1]["loss"])


def drawing(
    implementation: Implementation | None = None, rows: int = 3, width: int = 32
) -> Callable[[int], jax.Array]:
    """A small transformer that draws a number of tokens: (count) -> [rows, count].

    The prompts have several lengths, so that rows begin at several slots of the cache.
    """
    config = TransformerConfig(layers=2, width=width, heads=2, dropout=0.0)
    model = Transformer(config, vocab_size=60, positions=24, implementation=implementation)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *[jnp.zeros((1, 1), jnp.int32)] * 2)
    params = unstack_layers(reference.random_like(unbox(shapes["params"]), 0))
    prompts = [np.array(p) for p in ([55, 3, 4, 56], [55], [55, 1, 2])]
    tokens, valid = left_padded([prompts[i % 3] for i in range(rows)], 9)
    keys = sample_keys(0, [str(i) for i in range(rows)], [0] * rows)
    settings = row_settings([SamplingConfig(temperature=0.9, top_k=20)] * rows)
    call = {"model": model, "first": 20, "last": 52}
    return lambda count: generate(params, tokens, valid, keys, settings, count=count, **call)


def draw(count: int, *options: Any, **sizes: Any) -> np.ndarray:
    """The tokens of `drawing`."""
    return np.asarray(drawing(*options, **sizes)(count))


def kernel_calls(*options: Any, **sizes: Any) -> int:
    """How many kernels a step of `drawing` calls, functions that are called again counted again."""
    return _kernel_calls(jax.make_jaxpr(lambda: drawing(*options, **sizes)(2))().jaxpr)


def _kernel_calls(jaxpr: Any) -> int:
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            count += 1
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                count += _kernel_calls(inner) if hasattr(inner, "eqns") else 0
    return count
