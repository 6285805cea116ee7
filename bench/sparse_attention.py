"""Compares dense with three-region sparse attention at 4,096 tokens.

    .venv/bin/python -m bench.sparse_attention

It measures forward and backward passes of one attention layer (16 heads of 64, with projections)
and of the model of configs/fashion.py:drawings in float32, and one token of the layer with a full
cache. The command prints a table and writes bench/results/sparse_attention.json.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.models.attention import Attention, KeyValues, causal_mask
from cogview_jax.models.kernels.block_attention import CausalBlocks
from cogview_jax.models.pivots import draw_pivots
from cogview_jax.models.sparse_attention import (
    CachedRegions,
    PivotCache,
    ThreeRegions,
    gather_positions,
)
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.files import write_json
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.experiment import read_experiment
from cogview_jax.tokenizers.layout import make_layout
from cogview_jax.training.sequence_objective import SequenceObjective

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "sparse_attention.json"
REPEATS = 5
TOKENS, TEXT, HEADS, HEAD_WIDTH = 4096, 64, 16, 64
WINDOW, BLOCKS, PIVOTS = 128, 6, 768
SIDES = ("dense", "sparse")
#: Each row has the name of a quantity, its unit, and how many units are one base unit. The time of
#: all cores together is a fair comparison even if other work shares the machine.
QUANTITIES = (("seconds", "ms", 1e3), ("cpu_seconds", "cpu ms", 1e3), ("bytes", "MiB", 2**-20))

Call = tuple[Callable[..., Any], tuple]


def main() -> None:
    """Measures, prints the table, and writes the results."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    result: dict[str, Any] = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "tokens": TOKENS,
        "window": WINDOW * BLOCKS,
        "pivots": PIVOTS,
    }
    cases = {
        "attention layer, 1 row": layer(rows=1),
        "model of 4 layers, 1 row": model(),
        "one token of a layer, 1 row": token(rows=1),
        "one token of a layer, 4 rows": token(rows=4),
    }
    print(f"{'':32}{'dense':>16}{'sparse':>16}{'ratio':>8}   jax {jax.__version__}, float32")
    for name, calls in cases.items():
        measured = compare(calls)
        result[name] = measured
        for key, unit, scale in QUANTITIES:
            dense, sparse = (measured[side][key] * scale for side in SIDES)
            ratio = dense / sparse
            print(f"{name:32}{dense:8.1f} {unit:7}{sparse:8.1f} {unit:7}{ratio:7.2f}x")
    write_json(RESULT, result)
    print(json.dumps(result), file=sys.stderr)


def compare(calls: dict[str, Call]) -> dict[str, Any]:
    """Returns the least seconds of each side, and the bytes that it needs beside its inputs."""
    compiled = {side: jax.jit(f).lower(*x).compile() for side, (f, x) in calls.items()}
    clocks = {"seconds": time.perf_counter, "cpu_seconds": time.process_time}
    times = {side: {name: [] for name in clocks} for side in SIDES}
    for _ in range(REPEATS + 1):
        for side in SIDES:
            start = {name: clock() for name, clock in clocks.items()}
            jax.block_until_ready(compiled[side](*calls[side][1]))
            for name, clock in clocks.items():
                times[side][name].append(clock() - start[name])
    measured: dict[str, Any] = {}
    for side in SIDES:
        memory = compiled[side].memory_analysis()
        measured[side] = {
            **{name: min(each[1:]) for name, each in times[side].items()},
            "seconds_all": times[side]["seconds"][1:],
            "bytes": memory.temp_size_in_bytes + memory.output_size_in_bytes,
        }
    for key, _, _ in QUANTITIES:
        measured[f"{key}_ratio"] = measured["dense"][key] / measured["sparse"][key]
    return measured


def pivots_of(rows: int) -> jax.Array:
    """Returns the pivots of one layer, for rows that begin with text."""
    text = jnp.broadcast_to(jnp.arange(TOKENS) < TEXT, (rows, TOKENS))
    keys = jax.random.split(jax.random.key(0), rows)
    return draw_pivots(keys, text, ~text, PIVOTS, 1)[0]


def attention() -> tuple[Attention, dict]:
    """Returns a layer and its parameters."""
    width = HEADS * HEAD_WIDTH
    module = Attention(HEADS, 32.0, 0.0, 0.02, 0.02)
    params = module.init(jax.random.key(1), jnp.zeros((1, 4, width)), causal_mask(4))["params"]
    return module, unbox(params)


def layer(rows: int) -> dict[str, Call]:
    """Returns the gradients of a layer with respect to its input and parameters."""
    module, params = attention()
    x = jax.random.normal(jax.random.key(2), (rows, TOKENS, HEADS * HEAD_WIDTH))

    def gradients(params: dict, x: jax.Array, pattern: Any) -> Any:
        def loss(params: dict, x: jax.Array) -> jax.Array:
            return jnp.sum(module.apply({"params": params}, x, pattern)[0] ** 2)

        return jax.grad(loss, (0, 1))(params, x)

    regions = ThreeRegions(pivots_of(rows), WINDOW, BLOCKS)
    return {
        "dense": (gradients, (params, x, CausalBlocks())),
        "sparse": (gradients, (params, x, regions)),
    }


def model() -> dict[str, Call]:
    """Returns the gradients of the loss of a whole model for one row."""
    experiment = read_experiment(load_config(f"{ROOT}/configs/fashion.py:drawings"))
    layout = make_layout(experiment.layout, experiment.vocabulary)
    rng = np.random.default_rng(0)
    parts = {"text": rng.integers(0, 512, 20), "image": rng.integers(0, 512, 63 * 63)}
    row = layout.example(parts)
    batch = jax.tree.map(lambda field: jnp.asarray(field)[None], row)
    calls = {}
    for side in SIDES:
        config = dataclasses.replace(experiment.model, attention=side)
        vocabulary = experiment.vocabulary
        transformer = Transformer(config, vocabulary.size, layout.length, vocabulary=vocabulary)
        objective = SequenceObjective(transformer, layout)
        params = jax.jit(lambda key, o=objective: unbox(o.init(key)[0]))(jax.random.key(0))

        def gradients(params: dict, batch: Any, key: jax.Array, objective: Any = objective) -> Any:
            rows = jnp.arange(1)
            return jax.grad(lambda p: objective.sums(p, (), batch, rows, key).loss)(params)

        calls[side] = (gradients, (params, batch, jax.random.key(1)))
    return calls


def token(rows: int) -> dict[str, Call]:
    """Computes the last of 4,096 tokens; the others are cached."""
    module, params = attention()
    x = jax.random.normal(jax.random.key(2), (rows, 1, HEADS * HEAD_WIDTH))
    shape = (rows, HEADS, TOKENS, HEAD_WIDTH)
    full = KeyValues(*(jax.random.normal(jax.random.key(i), shape) for i in (3, 4)))
    pivots = pivots_of(rows)
    cache = PivotCache(*full, pivots, *(gather_positions(x, pivots) for x in full))
    mask = jnp.ones((1, TOKENS), bool)
    regions = CachedRegions(TOKENS - 1, jnp.zeros(rows, jnp.int32), WINDOW, BLOCKS)

    def output(params: dict, x: jax.Array, pattern: Any, cache: Any) -> jax.Array:
        # Writes are left out, because a decoding loop updates its cache in place.
        return module.apply({"params": params}, x, pattern, cache, TOKENS - 1)[0]

    return {
        "dense": (output, (params, x, mask, full)),
        "sparse": (output, (params, x, regions, cache)),
    }


if __name__ == "__main__":
    main()
