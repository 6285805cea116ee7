"""Computes the memory and time of the 4B model on common machines by dry runs.

    python -m bench.scaling

Each row is a `train --dry_run` in a process of its own, because a process simulates one number of
devices. The command rewrites the tables in docs/explanations/scaling.md and writes
bench/results/scaling.json. It takes ten minutes.
"""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cogview_jax.dry_run.report import fits, least_seconds, plan_run
from cogview_jax.models.config import REMAT
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.files import atomic_path, write_json
from cogview_jax.runtime.hardware import accelerator
from cogview_jax.runtime.mesh import MeshConfig
from cogview_jax.tasks.experiment import Experiment, read_experiment

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "scaling.json"
PAGE = ROOT / "docs" / "explanations" / "scaling.md"


@dataclass(frozen=True)
class Setup:
    """A machine, and the mesh of the model on it. `rows`: rows per device in a part of a batch."""

    devices: int
    accelerator: str
    mesh: tuple[int, int, int]
    rows: int
    precision: str = "bfloat16"

    def experiment(self, remat: str) -> Experiment:
        """Returns the training run of the paper on one of the machines."""
        config = load_config(str(ROOT / "configs" / "cogview_4b.py"))
        experiment = read_experiment(config)
        data, fsdp, tensor = self.mesh
        accumulate = experiment.train.global_batch // (self.rows * data * fsdp)
        return dataclasses.replace(
            experiment,
            precision=self.precision,
            mesh=MeshConfig(data, fsdp, tensor),
            model=dataclasses.replace(experiment.model, remat=remat),
            train=dataclasses.replace(experiment.train, accumulate=accumulate),
        )


SETUPS = (
    Setup(1, "H200", (1, 1, 1), 4),
    Setup(8, "H200", (1, 8, 1), 4),
    Setup(64, "H100", (1, 64, 1), 4),
    Setup(256, "TPU v5e", (1, 256, 1), 1),
    Setup(128, "TPU v5p", (1, 128, 1), 4),
    Setup(512, "V100-SXM2-32GB", (1, 512, 1), 2, "float16"),
)


def measure(setup: Setup, remat: str) -> dict:
    """Returns one row of the table. It has to be called in a process of its own."""
    experiment, target = setup.experiment(remat), accelerator(setup.accelerator)
    plan = plan_run(experiment, setup.devices)
    return {
        "devices": setup.devices,
        "accelerator": setup.accelerator,
        "mesh": setup.mesh,
        "precision": setup.precision,
        "rows": setup.rows,
        "accumulate": experiment.train.accumulate,
        "remat": remat,
        "state": plan.parameters + plan.moments + plan.gradients,
        "activations": plan.activations,
        "temporaries": plan.temporaries,
        "total": plan.total,
        "memory": target.memory * 1e9,
        "fits": fits(plan, target),
        "sent": plan.sent,
        "flops": plan.flops,
        "recomputed": plan.recomputed,
        "least_seconds": least_seconds(plan, experiment, target),
        "compile_seconds": plan.seconds,
    }


def table(rows: list[dict]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [
        "| devices | mesh (data, fsdp, tensor) | rows x parts | remat | state | activations |"
        " temporaries | total | fits | sent a step | again | least s a step |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gb = {name: f"{row[name] / 1e9:.1f}" for name in ("state", "activations", "temporaries")}
        lines.append(
            f"| {row['devices']} x {row['accelerator']} | {', '.join(map(str, row['mesh']))}"
            f" | {row['rows']} x {row['accumulate']} | {row['remat']} | {gb['state']}"
            f" | {gb['activations']} | {gb['temporaries']}"
            f" | {row['total'] / 1e9:.1f} of {row['memory'] / 1e9:.0f}"
            f" | {'yes' if row['fits'] else '**no**'} | {row['sent'] / 1e9:.0f}"
            f" | {row['recomputed']:.0%} | {row['least_seconds']:.3g} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table, and writes the results; with "measure", measures one row."""
    if sys.argv[1:2] == ["measure"]:
        number, remat = sys.argv[2:]
        print(json.dumps(measure(SETUPS[int(number)], remat)))
        return
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = []
    for number, setup in enumerate(SETUPS):
        for remat in REMAT:
            command = [sys.executable, "-m", "bench.scaling", "measure", str(number), remat]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"{setup.devices} x {setup.accelerator}, {remat}: {rows[-1]['total'] / 1e9:.1f} GB"
            )
    write_json(RESULT, rows)
    text = re.sub(
        r"(<!-- table -->\n).*?(\n<!-- end -->)",
        lambda match: match[1] + table(rows) + match[2],
        PAGE.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    with atomic_path(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
