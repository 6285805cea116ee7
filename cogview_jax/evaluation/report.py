"""Runs a benchmark on a bundle and writes what it has measured as JSON."""

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cogview_jax.checkpoints.bundle import identity
from cogview_jax.checkpoints.step_bundle import located
from cogview_jax.evaluation.benchmark import (
    Benchmark,
    ImageOptions,
    Measured,
    Options,
    Report,
    measure,
    needs,
    table,
)
from cogview_jax.evaluation.page import figures_image, report_page
from cogview_jax.evaluation.unfinished import Unfinished
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import check_file_output, write_file, write_json
from cogview_jax.runtime.processes import find_process_info


def evaluate(benchmark: Benchmark, bundle: str | None, out: str, options: Options) -> None:
    """Writes to the file `out` what `benchmark` measures, and prints its table.

    The report begins with the name of the benchmark, the task of the bundle's transformer, and the
    settings; what `benchmark.run` returns follows. Beside it lies a page for people, under the same
    name with the ending .html, with the images behind the numbers; and its curves and figures,
    where it has any, as .png. What a long evaluation has computed lies in the folder
    OUT.unfinished until the report is written. Of several processes one writes the report.

    Args:
        benchmark: from `evaluation.benchmark.load_benchmark`.
        bundle: a folder; None for a benchmark that needs none.
        out: the report.
        options: of the benchmark.

    Raises:
        InputError: there is no such bundle, the benchmark refuses it or an option, or `out` is a
            folder.
    """
    check_file_output(out, "--out")
    for ending in ("html", "png"):
        check_file_output(beside(out, ending), f"what --out writes as .{ending}")
    if options.images.save_statistics is not None:
        check_file_output(options.images.save_statistics, "--save_statistics")
    name = benchmark.__name__.rpartition(".")[2]
    if bundle is None and getattr(benchmark, "NEEDS_BUNDLE", True):
        raise InputError(f"--benchmark {name} measures a bundle: expected --bundle PATH")
    shared = getattr(benchmark, "SHARES_WORK", False)
    info = find_process_info("", None, None, os.environ)
    if info is not None and (info.processes or 1) > 1 and not shared:
        raise InputError(f"--benchmark {name} runs in one process, got {info.processes}")
    # Of a workdir the newest checkpoint of now, whatever comes while it is evaluated.
    bundle = None if bundle is None else located(bundle)
    if options.rerank_with:
        options = replace(options, rerank_with=_located_scorer(options.rerank_with))
    # Loading says what is wrong with a folder that is no bundle.
    model, (parts, task) = None, needs(benchmark)
    if bundle is not None:
        model = load(bundle, dtype=options.precision, needs=parts, task=task)
        options = replace(options, bundle=identity(bundle))
    # How many rows are computed together moves no more than their last bits.
    unfinished = Unfinished(out, {"benchmark": name, **asdict(replace(options, batch_size=None))})
    options = replace(options, unfinished=str(unfinished.folder))
    heading = {"benchmark": name} | _heading(model, bundle, options)
    process = None if info is None else info.process
    with unfinished.joined(process, shared=shared) as reports:
        if reports:
            measured = measure(benchmark, model, options)
            for note in dict.fromkeys(_notes(measured.report)):
                print(note, file=sys.stderr)
            print(table(benchmark, measured.report))
            _write(out, name, heading | measured.report, measured)
            unfinished.written()
        elif reports is not None:
            measure(benchmark, model, replace(options, images=_unkept(options.images)))
            print(f"{out}: this process has done its part", file=sys.stderr, flush=True)


def _write(out: str, name: str, report: Report, measured: Measured) -> None:
    page = report_page(f"{name}: {Path(out).name}", report, measured.sections)
    kept = "the table above is what the report says: run the same command again to write it"
    with at_work(kept):
        write_file(beside(out, "html"), lambda file: file.write_text(page, encoding="utf-8"))
        if figures := figures_image(measured.sections):
            write_file(beside(out, "png"), figures.save)
        write_json(out, report)
    print(f"report in {out}, a page of it in {beside(out, 'html')}", file=sys.stderr)


def _notes(report: Mapping[str, Any]) -> Iterator[str]:
    """What `distances` notes of pairs of sets, many of which may have the same."""
    for name, value in report.items():
        if name == "notes":
            yield from value
        elif isinstance(value, Mapping):
            yield from _notes(value)


def _unkept(images: ImageOptions) -> ImageOptions:
    """Statistics are kept by the process that writes the report."""
    return replace(images, save_statistics=None)


def _located_scorer(path: str) -> str:
    try:
        return located(path)
    except InputError as error:
        raise InputError(f"--rerank_with: {error}") from None


def beside(out: str, ending: str) -> Path:
    """A file beside a report: of runs/report.json and html it is runs/report.html."""
    path = Path(out)
    return path.with_name(f"{path.name.removesuffix('.json')}.{ending}")


def _heading(model: CogView | None, bundle: str | None, options: Options) -> Report:
    """What was measured and how: task and settings; sampling only where there is a transformer."""
    settings: Report = {"seed": options.seed}
    task = {}
    if model is not None and bundle is not None:
        settings = {"bundle": identity(bundle)} | settings
        if "transformer" in model.parts.names:
            task = {"task": model.layout.task}
            settings |= asdict(options.sampling(model))
        settings["precision"] = options.precision
    if options.rerank_with:
        settings["rerank_with"] = identity(options.rerank_with)
    return {**task, "settings": settings}
