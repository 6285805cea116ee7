"""Runs a benchmark on a bundle and writes what it has measured as JSON."""

import sys
from dataclasses import asdict

from cogview_jax.checkpoints.bundle import identity
from cogview_jax.evaluation.benchmark import Benchmark, Options, Report, table
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import check_file_output, write_json


def evaluate(benchmark: Benchmark, bundle: str, out: str, options: Options) -> None:
    """Writes to the file `out` what `benchmark` measures of a bundle, and prints its table.

    The report begins with the name of the benchmark, the task of the bundle's transformer, and the
    settings; what `benchmark.run` returns follows.

    Args:
        benchmark: from `evaluation.benchmark.load_benchmark`.
        bundle: a folder.
        out: the report.
        options: of the benchmark.

    Raises:
        InputError: there is no such bundle, the benchmark refuses it or an option, or `out` is a
            folder.
    """
    check_file_output(out, "--out")
    model = load(bundle, dtype=options.precision)
    name = benchmark.__name__.rpartition(".")[2]
    heading = {"benchmark": name} | _heading(model, bundle, options)
    report = benchmark.run(model, options)
    print(table(benchmark, report))
    with at_work("the report is not kept, but the table above is what it says"):
        write_json(out, heading | report)
    print(f"report in {out}", file=sys.stderr)


def _heading(model: CogView, bundle: str, options: Options) -> Report:
    """What was measured and how: task and settings; sampling only where there is a transformer."""
    settings: Report = {"bundle": identity(bundle), "seed": options.seed}
    task = {}
    if "transformer" in model.parts.names:
        task = {"task": model.layout.task}
        settings |= asdict(options.sampling(model))
    settings["precision"] = options.precision
    if options.rerank_with:
        settings["rerank_with"] = identity(options.rerank_with)
    return {**task, "settings": settings}
