"""Runs a benchmark on a bundle and writes what it has measured as JSON."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import jax

from cogview_jax.checkpoints.bundle import identity
from cogview_jax.checkpoints.step_bundle import located
from cogview_jax.evaluation.benchmark import Benchmark, Options, Report, measure, needs, table
from cogview_jax.evaluation.page import figures_image, report_page
from cogview_jax.evaluation.row_store import PATIENCE
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.faults import at_work
from cogview_jax.runtime.files import check_file_output, write_file, write_json
from cogview_jax.runtime.kv_store_sync import KVStoreSync
from cogview_jax.runtime.lock import locked
from cogview_jax.runtime.processes import is_primary


def evaluate(benchmark: Benchmark, bundle: str | None, out: str, options: Options) -> None:
    """Writes to the file `out` what `benchmark` measures, and prints its table.

    The report begins with the name of the benchmark, the task of the bundle's transformer, and the
    settings; what `benchmark.run` returns follows. Beside it lies a page for people, under the same
    name with the ending .html, with the images behind the numbers; and its curves and figures,
    where it has any, as .png. What a long evaluation has computed lies in the folder
    OUT.unfinished until the report is written.

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
    if jax.process_count() > 1 and not getattr(benchmark, "SHARES_WORK", False):
        raise InputError(f"--benchmark {name} runs in one process, got {jax.process_count()}")
    # Of a workdir the newest checkpoint of now, whatever comes while it is evaluated.
    bundle = None if bundle is None else located(bundle)
    if options.rerank_with:
        options = replace(options, rerank_with=_located_scorer(options.rerank_with))
    unfinished = Path(f"{out}.unfinished")
    with _held(unfinished):
        options = replace(options, unfinished=str(unfinished))
        # Loading says what is wrong with a folder that is no bundle.
        model, (parts, task) = None, needs(benchmark)
        if bundle is not None:
            model = load(bundle, dtype=options.precision, needs=parts, task=task)
            options = replace(options, bundle=identity(bundle))
        heading = {"benchmark": name} | _heading(model, bundle, options)
        measured = measure(benchmark, model, options)
        # All processes read what is kept until they have measured.
        sync = KVStoreSync(PATIENCE)
        sync.all_gather("measured", True)
        if is_primary():
            print(table(benchmark, measured.report))
            report = heading | measured.report
            page = report_page(f"{name}: {Path(out).name}", report, measured.sections)
            kept = "the table above is what the report says: run the same command again to write it"
            with at_work(kept):
                write_file(
                    beside(out, "html"), lambda file: file.write_text(page, encoding="utf-8")
                )
                if figures := figures_image(measured.sections):
                    write_file(beside(out, "png"), figures.save)
                write_json(out, report)
            shutil.rmtree(unfinished, ignore_errors=True)
            print(f"report in {out}, a page of it in {beside(out, 'html')}", file=sys.stderr)
        sync.all_gather("written", True)


def _located_scorer(path: str) -> str:
    try:
        return located(path)
    except InputError as error:
        raise InputError(f"--rerank_with: {error}") from None


def beside(out: str, ending: str) -> Path:
    """A file beside a report: of runs/report.json and html it is runs/report.html."""
    path = Path(out)
    return path.with_name(f"{path.name.removesuffix('.json')}.{ending}")


@contextlib.contextmanager
def _held(unfinished: Path) -> Iterator[None]:
    """Keeps other evaluations from the folder; one process holds the lock for all of them."""
    with contextlib.ExitStack() as stack:
        if is_primary():
            lock = unfinished.with_name(f".{unfinished.name}.lock")
            what = f"the report {unfinished.with_suffix('')}"
            stack.enter_context(locked(lock, what, "choose another --out"))
        yield


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
