"""Compares the precision policies with float32 on this machine.

    .venv/bin/python -m bench.precision [BUNDLE]

For each policy, the table has the time of a training step (8 layers of width 256, 16 rows of 128
tokens), the peak of matrix products in its type, how far its logits are from those of float32, and
how often the likeliest token is the same. The logits are those of a bundle, or of random weights if
none is given. The command also writes bench/results/precision.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import cogview_jax
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.transformer import Transformer
from cogview_jax.runtime.files import write_json
from cogview_jax.runtime.hardware import measured_matmul_peak
from cogview_jax.runtime.precision import POLICIES, Policy
from cogview_jax.runtime.sharding import unbox
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.loss_scale import LossScaleConfig
from cogview_jax.training.optimizer import OptimizerConfig, make_optimizer
from cogview_jax.training.sequence_objective import SequenceObjective
from cogview_jax.training.state import initial_state
from cogview_jax.training.step import make_step

RESULT = Path(__file__).parent / "results" / "precision.json"
VOCABULARY, LAYOUT = Vocabulary(1024, 1024), LayoutConfig(text_length=61, grid=8)
MODEL = TransformerConfig(layers=8, width=256, heads=8, dropout=0.0, remat="none", unroll=8)
ROWS, REPEATS = 16, 4


def main() -> None:
    """Measures, prints the table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", help="gives the logits; else random weights do")
    bundle = parser.parse_args().bundle
    rows = []
    expected = None
    for policy in POLICIES.values():
        seconds = step_seconds(policy)
        peak = measured_matmul_peak(jnp.dtype(policy.compute))
        logits = bundle_logits(bundle, policy) if bundle else random_logits(policy)
        expected = logits if expected is None else expected
        error = np.abs(logits - expected).max() / expected.std()
        same = np.mean(logits.argmax(-1) == expected.argmax(-1))
        rows.append(
            {
                "policy": policy.name,
                "step_seconds": seconds,
                "matmul_peak": peak,
                "largest_logit_error": float(error),
                "same_likeliest": float(same),
            }
        )
    result = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "weights": bundle or "random",
        "policies": rows,
    }
    write_json(RESULT, result)
    print(f"{result['device']}, jax {jax.__version__}; logits of {result['weights']} weights")
    print(
        f"{'policy':14}{'s/step':>8}{'GFLOP/s':>9}{'largest logit error':>22}{'same likeliest':>16}"
    )
    for row in rows:
        print(
            f"{row['policy']:14}{row['step_seconds']:8.2f}{row['matmul_peak'] / 1e9:9.0f}"
            f"{row['largest_logit_error']:14.4f} of sd{row['same_likeliest']:16.1%}"
        )
    print(json.dumps(result), file=sys.stderr)


def step_seconds(policy: Policy) -> float:
    """Returns the seconds of the fastest of some training steps."""
    layout = make_layout(LAYOUT, VOCABULARY)
    objective = SequenceObjective(
        Transformer(MODEL, VOCABULARY.size, layout.length, policy), layout
    )
    scale = LossScaleConfig() if policy.scales else None
    optimizer = make_optimizer(OptimizerConfig(), 100)
    state = unbox(jax.jit(lambda: initial_state(objective, optimizer, 0, scale))())
    rate = optax.constant_schedule(1e-4)
    step = jax.jit(
        make_step(objective, optimizer, rate, seed=0, loss_scale=scale), donate_argnums=0
    )
    rng = np.random.default_rng(0)
    examples = [
        layout.example(
            {"text": rng.integers(0, VOCABULARY.text, 61), "image": rng.integers(0, 1024, 64)}
        )
        for _ in range(ROWS)
    ]
    batch = jax.tree.map(lambda *rows: np.stack(rows), *examples)
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    return min(times[1:])


def random_logits(policy: Policy) -> np.ndarray:
    """Returns the logits of an initialised model: [rows, T, V]."""
    model = Transformer(MODEL, VOCABULARY.size, 128, policy)
    tokens = jax.random.randint(jax.random.key(1), (ROWS, 128), 0, VOCABULARY.size)
    positions = jnp.broadcast_to(jnp.arange(128), tokens.shape)
    params = unbox(jax.jit(model.init)(jax.random.key(0), tokens, positions)["params"])

    def run(params: dict) -> jax.Array:
        hidden = model.apply({"params": params}, tokens, positions)
        return model.apply({"params": params}, hidden, method=model.logits)

    return np.asarray(jax.jit(run)(params))


def bundle_logits(bundle: str, policy: Policy) -> np.ndarray:
    """Returns logits at the codes of sequences that a bundle samples in float32: [rows, T, V]."""
    prompts = [f"a {colour} circle" for colour in ("red", "green", "blue", "yellow")]
    sampler = cogview_jax.load(bundle)
    queries = sampler.generation.prompt_rows(prompts).values()
    codes = sampler.generate_codes(prompts, 1, 0, sampling=SamplingConfig())
    model = cogview_jax.load(bundle, dtype=policy.name)
    logits = []
    for query, sampled in zip(queries, codes[:, 0], strict=True):
        row = np.concatenate([query, sampled.ravel()])[None]
        logits.append(model.logits(row)[0, len(query) - 1 : -1, : sampler.layout.vocabulary.codes])
    return np.stack(logits)


if __name__ == "__main__":
    main()
