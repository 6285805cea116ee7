"""Writes the numbers of the stability experiment: a table in README.md, and results.json."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bench.stability.failures import Failure, failures
from bench.stability.recording import EXTREME, METRICS, Record
from cogview_jax.runtime.files import atomic_path, write_json
from cogview_jax.tasks.experiment import TransformerExperiment

#: The table stands in README.md between these lines. The rest of the file is not changed.
BEGIN, END = "<!-- table: written by make stability -->", "<!-- end of table -->"
HEAD = (
    *("variant", "what failed first", "step", "layer", "largest before", "what failed then"),
    *("steps tried", "skipped", "first loss", "last text loss", "last image loss"),
)
WORDS = {
    "squares": "squares in LayerNorm",
    "scores": "attention scores",
    "main": "main branch",
    "branch": "end of a branch",
}
#: The last loss is the mean of so many steps; results.json holds one of so many steps.
LAST, EVERY = 20, 10


def report(
    records: Mapping[str, Record],
    experiments: Mapping[str, TransformerExperiment],
    constant: Mapping[str, float],
    out: Path,
) -> dict[str, Any]:
    """Writes both into the folder `out`, and returns the content of results.json.

    In results.json a value that is not finite is null.
    """
    results = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "constant": dict(constant),
        "variants": {name: _summary(record, experiments[name]) for name, record in records.items()},
    }
    write_json(out / "results.json", results)
    path = out / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_path(path) as temporary:
        page = f"{before}{BEGIN}\n\n{_table(results)}\n{END}{after}"
        temporary.write_text(page, encoding="utf-8")
    return results


def _summary(record: Record, experiment: TransformerExperiment) -> dict[str, Any]:
    found = failures(record, experiment.model)
    dead = not np.isfinite(record.loss[-LAST:]).all()
    largest = {name: getattr(record, name) for name in EXTREME}
    curves = {name: getattr(record, name) for name in METRICS}
    curves |= {name: values.max(axis=1) for name, values in largest.items()}
    return {
        "model": dataclasses.asdict(experiment.model),
        "optimizer": dataclasses.asdict(experiment.optimizer),
        "failures": [dataclasses.asdict(failure) for failure in found],
        "steps": record.steps,
        "skipped": int(record.overflow.sum()),
        "first_loss": float(record.loss[0]),
        "last_losses": None if dead else _last_losses(record),
        "largest": {name: float(v[np.isfinite(v)].max()) for name, v in largest.items()},
        "curves": {"step": list(range(0, record.steps, EVERY))}
        | {name: [_number(v) for v in values[::EVERY]] for name, values in curves.items()},
    }


def _table(results: Mapping[str, Any]) -> str:
    rows = [HEAD, ("---",) * len(HEAD)]
    for name, summary in results["variants"].items():
        found = [Failure(**failure) for failure in summary["failures"]]
        first = ("nothing", "-", "-", "-")
        if found:
            failure = found[0]
            first = (WORDS[failure.quantity], failure.step, failure.layer, f"{failure.before:,.0f}")
        then = f"{WORDS[found[1].quantity]}, step {found[1].step}" if found[1:] else "-"
        last = summary["last_losses"]
        losses = [f"{last[kind]:.2f}" for kind in METRICS[1:3]] if last else ["-", "-"]
        numbers = (summary["steps"], summary["skipped"], f"{summary['first_loss']:.2f}")
        rows.append((f"`{name}`", *first, then, *numbers, *losses))
    empty = ("-",) * (len(HEAD) - 3)
    losses = (f"{results['constant'][kind]:.2f}" for kind in METRICS[1:3])
    rows.append(("a constant prediction", *empty, *losses))
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def _last_losses(record: Record) -> dict[str, float]:
    return {kind: float(getattr(record, kind)[-LAST:].mean()) for kind in METRICS[:3]}


def _number(value: np.ndarray) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None
