"""Compares a training step of the tutorial model with the matrix products of this machine.

    make bench

The step is a forward and backward pass of one row of 1,089 positions in float32, without the
optimizer, as the official release was timed. It is measured with attention in blocks and with all
scores in memory (`ImplementationConfig.attention`), in turns, and products of 2,048 x 2,048 between
them, so that all see the same machine. On one that others use, processor time says more than the
clock. The command prints a table and writes bench/results/train_step.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.implementation import Implementation
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.files import write_json
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tokenizers.layout import Example, Layout, LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.sequence_objective import SequenceObjective

RESULT = Path(__file__).parent / "results" / "train_step.json"
PRODUCT = 2048
LAYOUT = make_layout(LayoutConfig(text_length=62), Vocabulary())
CONFIG = TransformerConfig(layers=12, width=1024, heads=16, dropout=0.0, remat="none")


def main() -> None:
    """Measures, prints the table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    objectives = {attention: objective_of(attention) for attention in ("blocks", "xla")}
    objective = objectives["blocks"]
    params = jax.jit(lambda key: unbox(objective.init(key)[0]))(jax.random.key(0))
    batch = random_row(LAYOUT)
    steps = {
        name: jax.jit(jax.value_and_grad(loss_of(own))).lower(params, batch).compile()
        for name, own in objectives.items()
    }
    forward = jax.jit(loss_of(objective)).lower(params, batch).compile()
    matrix = jax.random.normal(jax.random.key(1), (PRODUCT, PRODUCT)) / PRODUCT**0.5
    multiply = jax.jit(jnp.matmul)
    work: dict[str, Callable[[], object]] = {"forward": lambda: forward(params, batch)}
    for name, step in steps.items():
        work[name] = lambda step=step: step(params, batch)
    seconds = {name: [timed(run)] for name, run in work.items()}
    products = [timed(lambda: multiply(matrix, matrix))]
    for _ in range(rounds):
        for name, run in work.items():
            products += [timed(lambda: multiply(matrix, matrix)) for _ in range(5)]
            seconds[name].append(timed(run))
    rate = 2 * PRODUCT**3 / np.min(products, axis=0)
    tokens, flops = objective.tokens_per_row, objective.flops_per_row
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tokens": tokens,
        "step_flops": flops,
        "matmul_peak": rate[0],
        "matmul_peak_by_processor_time": rate[1],
        "forward_seconds": min(seconds["forward"])[0],
    }
    print(f"tutorial model, 1 x {tokens} tokens, float32, jax {jax.__version__}")
    print(f"  products of {PRODUCT} x {PRODUCT}: {rate[0] / 1e9:.0f} GFLOP/s")
    print(f"  forward, blocks: {result['forward_seconds']:.2f} s")
    print("  forward and backward    seconds  share of that rate  the same by processor time")
    for name, step in steps.items():
        best, processor = np.min(seconds[name][1:], axis=0)
        result[name] = {
            "seconds": best,
            "seconds_all": [one for one, _ in seconds[name][1:]],
            "processor_seconds": processor,
            "share": flops / best / rate[0],
            "share_by_processor_time": flops / processor / rate[1],
            "temporary_bytes": step.memory_analysis().temp_size_in_bytes,
        }
        own = result[name]
        print(
            f"  {name:22} {best:8.2f} {own['share']:19.0%} {own['share_by_processor_time']:27.0%}"
            f"      {own['temporary_bytes'] / 1e6:,.0f} MB beside parameters and gradients"
        )
    # Under these names for comparisons with commits that had no other.
    result["step_seconds"] = result["blocks"]["seconds"]
    result["share_of_peak"] = result["blocks"]["share"]
    write_json(RESULT, result)
    print(json.dumps(result), file=sys.stderr)


def objective_of(
    attention: str, config: TransformerConfig = CONFIG, layout: Layout = LAYOUT
) -> SequenceObjective:
    """The objective of the tutorial model with one of the programs for attention."""
    programs = Implementation(attention, "layers", jax.default_backend())
    size = layout.vocabulary.size
    return SequenceObjective(
        Transformer(config, size, layout.length - 1, implementation=programs), layout
    )


def random_row(layout: Layout) -> Example:
    """A batch of one row with random text and a random image."""
    rng, sizes = np.random.default_rng(0), layout.vocabulary
    parts = {
        region.name: rng.integers(0, {"text": sizes.text, "image": sizes.codes}[region.kind], n)
        for region in layout.regions
        if (n := region.length) and region.kind in ("text", "image")
    }
    return jax.tree.map(lambda field: jnp.asarray(field)[None], layout.example(parts))


def loss_of(objective: SequenceObjective) -> Callable[[dict, Example], jax.Array]:
    """The loss of a batch of one row as a function of the parameters."""

    def loss(params: dict, batch: Example) -> jax.Array:
        sums = objective.sums(params, (), batch, jnp.arange(1), jax.random.key(1))
        return sums.loss / objective.normalizer(batch)

    return loss


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call, by the clock and of all cores together."""
    began, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - began, time.process_time() - processor


if __name__ == "__main__":
    main()
