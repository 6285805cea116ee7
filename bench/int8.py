"""Compares sampling with kernels in 8 bits with float32 on this machine, in pairs.

    python -m bench.int8 [--batches 1,4] [--contexts 64,1000] [--pairs N] [--layers N]
    python -m bench.int8 --bundle BUNDLE

The first form times the tutorial model with random weights: calls of `decode` in float32 and with
int8 kernels in turns, by the clock and by processor time, which other work on the machine changes
less. A ratio is the median over all pairs. The second form compares the logits of a bundle at codes
that it samples, and the bytes of its weights.
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
from cogview_jax.models.transformer import Transformer
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
    model = Transformer(config, vocabulary.size, POSITIONS, vocabulary=vocabulary)
    exact = random_params(model)
    small = quantized(exact)
    print(f"jax {jax.__version__}; weights {size(small) / 1e6:.0f} of {size(exact) / 1e6:.0f} MB")
    for context in contexts:
        for batch in batches:
            both = [Sampler(model, params, batch, context, pairs) for params in (exact, small)]
            for _ in range(pairs):
                for sampler in both:
                    sampler.call()
            line = f"{batch} rows, context {context}:"
            for name in ("clock", "processor"):
                wide, narrow = (getattr(sampler, name) for sampler in both)
                ratio = statistics.median(a / b for a, b in zip(wide, narrow, strict=True))
                line += (
                    f"  {name} {min(wide):.1f} -> {min(narrow):.1f} ms a step, {ratio:.2f} times"
                )
            print(line, flush=True)


def compare_logits(bundle: str) -> None:
    """Prints how far a bundle's logits with int8 kernels are from those in float32."""
    exact, small = cogview_jax.load(bundle), cogview_jax.load(bundle, dtype="int8")
    first, last = exact.layout.allowed("image")
    codes = exact.generate_codes(PROMPTS, 1, 0, sampling=SamplingConfig())[:, 0]
    queries = exact.generation.prompt_rows(PROMPTS).values()
    pairs = []
    for query, sampled in zip(queries, codes, strict=True):
        row = np.concatenate([query, sampled.ravel()])[None]
        at = slice(len(query) - 1, -1)
        pairs.append([model.logits(row)[0, at, first:last] for model in (exact, small)])
    wide, narrow = (jnp.stack(logits) for logits in zip(*pairs, strict=True))
    error = (narrow - wide) / wide.std()
    share = jax.nn.softmax(wide)
    divergence = jnp.sum(share * (jax.nn.log_softmax(wide) - jax.nn.log_softmax(narrow)), axis=-1)
    sizes = [size(model.parts.transformer.params) for model in (small, exact)]
    print(
        f"weights {sizes[0] / 1e6:.2f} of {sizes[1] / 1e6:.2f} MB ({sizes[0] / sizes[1]:.3f});"
        f" {divergence.size} codes: logit error of a standard deviation {jnp.abs(error).max():.3f}"
        f" at most, {jnp.sqrt(jnp.mean(error**2)):.4f} rms; same likeliest code"
        f" {jnp.mean(wide.argmax(-1) == narrow.argmax(-1)):.1%}; KL {divergence.mean():.1e} nats"
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
