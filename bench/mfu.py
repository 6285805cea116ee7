"""Measures the model FLOPs utilisation of training steps of the 4B model on one device.

    XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 python -m bench.mfu [VARIANT ...]

A VARIANT is settings joined by commas: rows of a step, any number of `model` in
configs/cogview_4b.py, and fused=0 to leave the attention kernel alone:

    python -m bench.mfu rows=16,remat=dots,attention_dropout=0 rows=24,remat=save-attention

The step is that of `train` with its optimizer, on random tokens. The peak is that of matrix
products, which are measured between the steps. The command prints a table and the longest kernels
of the first variant, and writes bench/results/mfu.json.
"""

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bench.kernels import kernels
from cogview_jax.models.implementation import ImplementationConfig
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.files import write_json
from cogview_jax.runtime.hardware import device_memory, measured_matmul_peak, peak_flops
from cogview_jax.runtime.mesh import make_mesh
from cogview_jax.runtime.precision import policy
from cogview_jax.tasks.experiment import TransformerExperiment, read_experiment
from cogview_jax.tasks.run_setup import make_task
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.layout import Example
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.state import TrainState, make_state, state_shapes
from cogview_jax.training.step import make_step

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "mfu.json"
VARIANTS = (
    "rows=16,remat=dots,attention_dropout=0",
    "rows=16,remat=dots,attention_dropout=0,fused=0",
    "rows=24,remat=save-attention,attention_dropout=0",
    "rows=16,remat=dots",
)
STEPS = 5


def experiment_of(variant: str) -> TransformerExperiment:
    """Returns the training of the paper with the settings of a variant."""
    experiment = read_experiment(load_config(str(ROOT / "configs" / "cogview_4b.py")))
    given = dict(setting.split("=", 1) for setting in variant.split(","))
    rows, fused = int(given.pop("rows")), given.pop("fused", "1") != "0"
    kinds = {"remat": str, "dropout": float, "attention_dropout": float}
    changes = {name: kinds.get(name, int)(value) for name, value in given.items()}
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, **changes),
        train=dataclasses.replace(experiment.train, global_batch=rows, accumulate=1),
        implementation=ImplementationConfig(attention="auto" if fused else "xla"),
    )


class Bench:
    """Steps one state with every variant in turn."""

    def __init__(self):
        """The state is made by the first measurement."""
        self.state: TrainState | None = None

    def measure(self, variant: str, trace: str | None = None) -> dict[str, Any]:
        """Returns the seconds of a step and what follows from them, or why it does not fit."""
        experiment = experiment_of(variant)
        task = make_task(experiment, Workdir(Path("nowhere")))
        objective, config = task.objective, experiment.train
        optimizer = make_optimizer(experiment.optimizer, config.steps)
        mesh = make_mesh(experiment.mesh, jax.devices()[:1])
        step = make_step(objective, optimizer, schedule(experiment.optimizer, config.steps), seed=0)
        with jax.set_mesh(mesh):
            if self.state is None:
                shapes = state_shapes(objective, optimizer, mesh)
                self.state = make_state(objective, optimizer, shapes, 0)
            batches = [
                random_batch(task.layout, config.global_batch, seed) for seed in range(STEPS)
            ]
            began = time.perf_counter()
            try:
                compiled = jax.jit(step, donate_argnums=0).lower(self.state, batches[0]).compile()
                compile_seconds = time.perf_counter() - began
                self._steps(compiled, batches[:2])
                # The peak is measured between the steps, so that both have the same clock and heat.
                peak = matmul_peak(experiment)
                began = time.perf_counter()
                losses = self._steps(compiled, batches)
                seconds = (time.perf_counter() - began) / STEPS
                if trace:
                    with jax.profiler.trace(trace):
                        self._steps(compiled, batches[:1])
            except jax.errors.JaxRuntimeError as error:
                self.state = None
                return {"variant": variant, "error": str(error).splitlines()[0][:200]}
        flops = config.global_batch * objective.flops_per_row
        return {
            "variant": variant,
            "rows": config.global_batch,
            "seconds": seconds,
            "tokens_per_second": config.global_batch * objective.tokens_per_row / seconds,
            "flops": flops,
            "matmul_peak": peak,
            "mfu_measured": flops / seconds / peak,
            "mfu": flops / seconds / peak_flops(jax.devices()[0], jnp.bfloat16),
            "compile_seconds": compile_seconds,
            "memory": device_memory().get("device_memory"),
            "losses": losses,
        }

    def _steps(self, compiled: Any, batches: list[Example]) -> list[float]:
        losses = []
        for batch in batches:
            state, self.state = self.state, None
            self.state, metrics = compiled(state, batch)
            losses.append(metrics["loss"])
        return [float(loss) for loss in losses]


def matmul_peak(experiment: TransformerExperiment) -> float:
    """Returns the FLOPs per second of 8192 x 8192 products (on CPUs, 1024 x 1024)."""
    measured_matmul_peak.cache_clear()
    n, chained = (1024, 1) if jax.default_backend() == "cpu" else (8192, 20)
    return measured_matmul_peak(jnp.dtype(policy(experiment.precision).compute), n, chained)


def random_batch(layout: Any, rows: int, seed: int) -> Example:
    """Returns rows of full length with random tokens."""
    generator = np.random.default_rng(seed)
    sizes = {"text": layout.vocabulary.text, "image": layout.vocabulary.codes}
    examples = []
    for _ in range(rows):
        parts = {
            region.name: generator.integers(0, sizes[region.kind], region.length)
            for region in layout.regions
            if region.kind in sizes
        }
        examples.append(layout.example(parts))
    return jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *examples)


def main() -> None:
    """Measures, prints the table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text = "a variant, such as rows=16,remat=dots"
    parser.add_argument("variants", nargs="*", metavar="VARIANT", default=VARIANTS, help=text)
    variants = parser.parse_args().variants
    device, bench, rows = jax.devices()[0].device_kind, Bench(), []
    print(f"cogview_4b in bfloat16, {device}, jax {jax.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as trace:
        for variant in variants:
            row = bench.measure(variant, None if rows else trace)
            rows.append(row)
            write_json(RESULT, {"device": device, "jax": jax.__version__, "rows": rows})
            if "error" in row:
                print(f"  {variant:60} {row['error']}", flush=True)
                continue
            memory = f"{row['memory'] / 1e9:.1f} GB" if row["memory"] else "-"
            print(
                f"  {variant:60} {row['seconds']:.3f} s, {row['tokens_per_second']:.0f} tokens/s,"
                f" {row['flops'] / row['seconds'] / 1e12:.4g} of {row['matmul_peak'] / 1e12:.4g}"
                f" TFLOP/s: {row['mfu_measured']:.1%} (of the maker's: {row['mfu']:.1%}),"
                f" at most {memory} held, compiled in {row['compile_seconds']:.0f} s,"
                f" loss {row['losses'][0]:.3f} to {row['losses'][-1]:.3f}",
                flush=True,
            )
            if len(rows) == 1:
                for name, count, milliseconds in list(kernels(trace))[:40]:
                    print(f"    {milliseconds:9.2f} ms {count:6} x {name[:120]}")


if __name__ == "__main__":
    main()
