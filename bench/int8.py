"""Compares sampling with kernels and cache in 8 bits with float32 on this machine, in pairs.

    python -m bench.int8 [--batches 1,4] [--contexts 64,1000] [--pairs N] [--layers N]
    python -m bench.int8 --bundle BUNDLE

The first form times the tutorial model with random weights: calls of `decode` in float32 and in 8
bits in turns, by the clock and by processor time, which other work on the machine changes less. A
ratio is the median over all pairs. The second form compares the logits of a bundle at codes that it
samples, with its kernels in 8 bits and with its cache too, and the bytes of its weights.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cogview_jax
from bench.decode import MODELS, POSITIONS, prefilled, random_params
from cogview_jax.models.linear import TRANSPOSED
from cogview_jax.models.quantization import KERNEL_SCALE, TABLE_TYPE, quantize_kernels
from cogview_jax.models.transformer import (
    Transformer,
    cached_forward,
    empty_cache,
    logits_of,
    without_blocks,
)
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.precision import policy_of
from cogview_jax.sampling.decode import decode
from cogview_jax.sampling.filters import row_settings
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary

#: Tokens of one timed call.
COUNT = 16
PROMPTS = [
    f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("heart", "car", "cat", "star")
]


def quantized(params: Any) -> Any:
    """Returns parameters in the form for decoding on a CPU with their kernels in 8 bits."""
    if isinstance(params, tuple):
        return tuple(map(quantized, params))
    if not isinstance(params, Mapping):
        return params
    if TRANSPOSED in params:
        integers, scale = quantize_kernels(params[TRANSPOSED][0].T[None])
        return {**params, TRANSPOSED: (integers[0].T,), KERNEL_SCALE: scale[0]}
    return {
        name: value.astype(TABLE_TYPE) if name.endswith("embedding") else quantized(value)
        for name, value in params.items()
    }


def size(params: Any) -> int:
    """Returns the bytes of all arrays."""
    return sum(array.nbytes for array in jax.tree.leaves(params))


class Sampler:
    """Calls of `decode`, one after the other, and how long each took."""

    def __init__(self, model: Transformer, params: Any, batch: int, context: int, calls: int):
        """Fills the cache, and compiles."""
        room = COUNT * (calls + 2)
        self.params, self.state, options = prefilled(model, params, batch, context, room)
        settings = row_settings([SamplingConfig()] * batch)
        self.options = {"settings": settings, "count": COUNT, **options}
        self.clock, self.processor = [], []
        self.call()
        self.clock, self.processor = [], []

    def call(self) -> None:
        """Samples COUNT tokens a row; keeps the milliseconds of one."""
        start, used = time.perf_counter(), time.process_time()
        self.state, _ = jax.block_until_ready(decode(self.params, self.state, **self.options))
        self.processor.append((time.process_time() - used) / COUNT * 1e3)
        self.clock.append((time.perf_counter() - start) / COUNT * 1e3)


def time_pairs(layers: int | None, batches: list[int], contexts: list[int], pairs: int) -> None:
    """Prints the milliseconds a token of both, and their ratios."""
    config = dataclasses.replace(MODELS["tutorial"], dropout=0.0)
    config = dataclasses.replace(config, layers=layers or config.layers)
    vocabulary = Vocabulary()
    models = [
        Transformer(config, vocabulary.size, POSITIONS, policy_of(name), vocabulary=vocabulary)
        for name in ("float32", "int8")
    ]
    exact = random_params(models[0])
    small = quantized(exact)
    print(f"jax {jax.__version__}; weights {size(small) / 1e6:.0f} of {size(exact) / 1e6:.0f} MB")
    for context in contexts:
        for batch in batches:
            both = [
                Sampler(model, params, batch, context, pairs)
                for model, params in zip(models, (exact, small), strict=True)
            ]
            bytes_of_cache = [size(sampler.state.cache) / 1e6 for sampler in both]
            for _ in range(pairs):
                for sampler in both:
                    sampler.call()
            line = f"{batch} rows, context {context}: cache {bytes_of_cache[1]:.1f} of"
            line += f" {bytes_of_cache[0]:.1f} MB"
            for name in ("clock", "processor"):
                wide, narrow = (getattr(sampler, name) for sampler in both)
                ratio = statistics.median(a / b for a, b in zip(wide, narrow, strict=True))
                line += (
                    f"  {name} {min(wide):.1f} -> {min(narrow):.1f} ms a step, {ratio:.2f} times"
                )
            print(line, flush=True)


def cached_logits(model: CogView, row: np.ndarray) -> jax.Array:
    """Returns the logits of a row's places, float32 [T, V], through a cache as in sampling."""
    transformer, params = model.parts.engine.model, model.parts.engine.params
    tokens, cache = row[None], empty_cache(transformer, 1, len(row))
    seen, positions = np.ones(tokens.shape, bool), np.arange(len(row))[None]
    hidden, _ = cached_forward(transformer, params, tokens, positions, seen, cache, 0)
    return logits_of(without_blocks(params), hidden, model=transformer)[0]


def compare_logits(bundle: str) -> None:
    """Prints how far a bundle's logits in 8 bits are from those in float32."""
    exact, small = cogview_jax.load(bundle), cogview_jax.load(bundle, dtype="int8")
    sizes = [size(model.parts.transformer.params) for model in (small, exact)]
    print(f"weights {sizes[0] / 1e6:.2f} of {sizes[1] / 1e6:.2f} MB ({sizes[0] / sizes[1]:.3f})")
    first, last = exact.layout.allowed("image")
    codes = exact.generate_codes(PROMPTS, 1, 0, sampling=SamplingConfig())[:, 0]
    queries = exact.generation.prompt_rows(PROMPTS).values()
    forms = {"float32": [], "kernels in 8 bits": [], "kernels and cache": []}
    for query, sampled in zip(queries, codes, strict=True):
        row = np.concatenate([query, sampled.ravel()])
        whole = [model.logits(row[None])[0] for model in (exact, small)]
        for found, logits in zip(forms.values(), (*whole, cached_logits(small, row)), strict=True):
            found.append(logits[len(query) - 1 : -1, first:last])
    wide, *others = map(jnp.stack, forms.values())
    share = jax.nn.softmax(wide)
    for name, narrow in zip([*forms][1:], others, strict=True):
        error = (narrow - wide) / wide.std()
        change = jax.nn.log_softmax(wide) - jax.nn.log_softmax(narrow)
        divergence = jnp.sum(share * change, axis=-1)
        print(
            f"{name}, {divergence.size} codes: logit error of a standard deviation"
            f" {jnp.abs(error).max():.3f} at most, {jnp.sqrt(jnp.mean(error**2)):.4f} rms; same"
            f" likeliest code {jnp.mean(wide.argmax(-1) == narrow.argmax(-1)):.1%};"
            f" KL {divergence.mean():.1e} nats"
        )


def main() -> None:
    """Reads the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--contexts", default="64,1000")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--layers", type=int, help="of the model; 12 where not given")
    parser.add_argument("--bundle", help="compare the logits of this one instead")
    given = parser.parse_args()
    if given.bundle:
        compare_logits(given.bundle)
        return
    batches, contexts = (list(map(int, x.split(","))) for x in (given.batches, given.contexts))
    time_pairs(given.layers, batches, contexts, given.pairs)


if __name__ == "__main__":
    main()
