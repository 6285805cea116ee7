"""Compares a training step of the tutorial model with the matrix products of this machine.

    make bench

The step is a forward and backward pass of one row of 1,089 positions in float32, without the
optimizer, as the official release was timed. The command prints a table and writes
bench/results/train_step.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.files import write_json
from cogview_jax.runtime.hardware import measured_matmul_peak
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.layout import Example, LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.sequence_objective import SequenceObjective

RESULT = Path(__file__).parent / "results" / "train_step.json"
REPEATS = 5


def main() -> None:
    """Measures, prints the table, and writes the results."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    layout = make_layout(LayoutConfig(text_length=62), Vocabulary())
    config = TransformerConfig(
        layers=12, width=1024, heads=16, dropout=0.0, remat="none", unroll=12
    )
    model = Transformer(config, layout.vocabulary.size, layout.length - 1)
    objective = SequenceObjective(model, layout)
    params = jax.jit(lambda key: unbox(objective.init(key)[0]))(jax.random.key(0))
    rng = np.random.default_rng(0)
    parts = {"text": rng.integers(0, 50_000, 62), "image": rng.integers(0, 8192, 1024)}
    row = layout.example(parts)
    batch = jax.tree.map(lambda field: jnp.asarray(field)[None], row)
    key = jax.random.key(1)

    def loss(params: dict, batch: Example) -> jax.Array:
        sums = objective.sums(params, (), batch, jnp.arange(1), key)
        return sums.loss / objective.normalizer(batch)

    forward, both = jax.jit(loss), jax.jit(jax.value_and_grad(loss))
    peaks, seconds, forwards = [], [], []
    for function in (forward, both):
        jax.block_until_ready(function(params, batch))
    for _ in range(REPEATS):
        # The peak is measured between the steps, so that both see the same machine.
        measured_matmul_peak.cache_clear()
        peaks.append(measured_matmul_peak(jnp.dtype("float32"), 2048))
        forwards.append(timed(forward, params, batch))
        seconds.append(timed(both, params, batch))
    tokens, flops = objective.tokens_per_row, objective.flops_per_row
    best, peak = min(seconds), max(peaks)
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tokens": tokens,
        "forward_seconds": min(forwards),
        "step_seconds": best,
        "step_seconds_all": seconds,
        "tokens_per_second": tokens / best,
        "step_flops": flops,
        "flops_per_second": flops / best,
        "matmul_peak": peak,
        "share_of_peak": flops / best / peak,
    }
    write_json(RESULT, result)
    rows = [
        ("forward", f"{result['forward_seconds']:.2f} s"),
        ("forward + backward", f"{best:.2f} s (of {', '.join(f'{s:.2f}' for s in seconds)})"),
        ("tokens/s", f"{result['tokens_per_second']:.0f}"),
        ("arithmetic", f"{flops / 1e12:.2f} TFLOP, {flops / best / 1e9:.0f} GFLOP/s"),
        ("matmul peak", f"{peak / 1e9:.0f} GFLOP/s (2048 x 2048, float32)"),
        ("share of peak", f"{result['share_of_peak']:.0%}"),
    ]
    print(f"tutorial model, 1 x {tokens} tokens, float32, jax {jax.__version__}")
    for name, value in rows:
        print(f"  {name:20}{value}")
    print(json.dumps(result), file=sys.stderr)


def timed(function, *arguments) -> float:
    """Returns the seconds of one call."""
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
