"""A look at the data of an experiment: what it holds, and which settings fit it."""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogview_jax.checkpoints.bundle_folder import bundle_folder
from cogview_jax.data.filters import filtered
from cogview_jax.data.records import Record, printable
from cogview_jax.data.sources.source import Source, described, opened
from cogview_jax.data.transforms import fitted
from cogview_jax.evaluation.page import report_page
from cogview_jax.evaluation.survey import View, reduced, survey
from cogview_jax.evaluation.survey_report import (
    Duplicates,
    Report,
    Suggestion,
    as_json,
    named_once,
    sections,
    summary,
    survey_report,
)
from cogview_jax.runtime.config import as_settings
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import atomic_path, check_folder_output, is_clutter, write_json
from cogview_jax.runtime.paths import local_path
from cogview_jax.runtime.processes import log
from cogview_jax.runtime.progress import waiting
from cogview_jax.tasks.earlier_run import resolve
from cogview_jax.tasks.experiment import (
    CodecExperiment,
    Experiment,
    TransformerExperiment,
    read_experiment,
)
from cogview_jax.tasks.survey_advice import advice, problems
from cogview_jax.tasks.survey_text import fit_text

#: The files of a survey: the report, its page, and names of records for `data.filter.exclude`.
REPORT, PAGE = "survey.json", "survey.html"
EXACT, NEAR = "exact_duplicates.txt", "near_duplicates.txt"
FILES = (REPORT, PAGE, EXACT, NEAR)
#: Groups of near duplicates that the page shows, and records of each.
_SHOWN_GROUPS, _SHOWN_RECORDS = 6, 5


def survey_data(config: Mapping[str, Any], given: Mapping[str, str], out: str, count: int) -> None:
    """Surveys the data of a config, prints the main numbers and writes the folder `out`.

    Args:
        config, given: as for `earlier_run.resolve`. What `data.from` names need not be there yet.
        out: the folder, whose files are `FILES`. It appears whole; an earlier survey is replaced.
        count: records that are read, chosen at random; 0 for all.

    Raises:
        InputError: the data or the config is wrong, or `out` holds other files.
    """
    folder = _checked(out)
    experiment = _experiment(config, given)
    run = experiment.data.from_ if isinstance(experiment, TransformerExperiment) else ""
    source = filtered(opened(experiment.data.source, run=run), experiment.data.filter)
    contents = described(source)
    log(contents)
    found = survey(source, count=count, seed=experiment.seed, view=_view(experiment))
    with waiting("looking for duplicates"):
        groups = found.exact_duplicates(), found.near_duplicates()
        duplicates = Duplicates(*(named_once(each, source.key) for each in groups))
    text = fit_text(experiment, found.texts)
    report = survey_report(found, duplicates, source.key, text.tokens)
    suggestions = advice(experiment, report, text, str(folder / EXACT))
    wrong = problems(experiment, report, text)
    head: Report = {"source": contents, "settings": _settings(experiment)}
    report = head | report
    if text.trials:
        report["text_pieces"] = {str(pieces): round(mean, 2) for pieces, mean in text.trials}
    report["problems"], report["suggestions"] = wrong, as_json(suggestions)
    print(_table(report, suggestions))
    near = [_records(source, group[:_SHOWN_RECORDS]) for group in _largest(duplicates.near)]
    shown = sections(report, found, text.tokens, suggestions, near)
    page = report_page(f"Survey of {_name(experiment)}", report, shown)
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        (temporary / PAGE).write_text(page, encoding="utf-8")
        for name, numbers in (
            (EXACT, duplicates.exact_copies),
            (NEAR, duplicates.near_copies),
        ):
            lines = [f"{printable(source.key(number))}\n" for number in numbers]
            (temporary / name).write_text("".join(lines), encoding="utf-8")
        write_json(temporary / REPORT, report)
    print(f"report in {folder / REPORT}, a page of it in {folder / PAGE}", file=sys.stderr)


def _checked(out: str) -> Path:
    """The folder, unless it holds other files than a survey, which would be replaced."""
    path = local_path(out, "--out")
    check_folder_output(path, "--out", replaced=True)
    names = sorted(x.name for x in path.iterdir()) if path.is_dir() else []
    others = [name for name in names if name not in FILES and not is_clutter(name)]
    if others:
        raise InputError(
            f"--out {out} holds other files than a survey, such as {others[0]}: expected a new or"
            " empty folder, or that of an earlier survey"
        )
    return path


def _experiment(config: Mapping[str, Any], given: Mapping[str, str]) -> Experiment:
    """The experiment, also before the run that `data.from` names has begun."""
    settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    name = settings.get("data", {}).get("from", "")
    if name and not bundle_folder(name, "data.from").exists():
        log(f"data.from {name} is not there: what the config says of the data itself is surveyed")
        return read_experiment(settings | {"data": settings["data"] | {"from": ""}})
    return resolve(config, given)[0]


def _view(experiment: Experiment) -> View | None:
    """An image as the image tokenizer of the experiment sees it; None of a transformer."""
    if not isinstance(experiment, CodecExperiment):
        return None
    return functools.partial(fitted, size=experiment.model.image_size, crop=experiment.data.crop)


def _settings(experiment: Experiment) -> dict[str, Any]:
    """What decides which images there are, and how they are shown."""
    data = as_settings(experiment.data)
    return {name: data[name] for name in ("source", "filter", "crop")}


def _name(experiment: Experiment) -> str:
    source = experiment.data.source
    path = getattr(source, "path", "")
    return f"{source.kind} {Path(path).name if path else 'data'}"


def _table(report: Mapping[str, Any], suggestions: Sequence[Suggestion]) -> str:
    """The main numbers, as `summary` has them, and what is wrong and suggested."""
    lines = [f"{name:<12}{line}" for name, line in summary(report).items()]
    for each in report["not_used"]:
        lines.append(f"{'':<12}{each['records']:,} x {each['reason']}, such as")
        lines.append(f"{'':<14}{each['examples'][0]}")
    lines += [f"{'warning':<12}{problem}" for problem in report["problems"]]
    for suggestion in suggestions:
        lines += [f"{'suggestion':<12}{suggestion.flags}", f"{'':<12}  {suggestion.why}"]
    return "\n".join(lines)


def _largest(groups: Sequence[list[int]]) -> list[list[int]]:
    return sorted(groups, key=lambda group: (-len(group), group[0]))[:_SHOWN_GROUPS]


def _records(source: Source[Record], numbers: Sequence[int]) -> list[Record]:
    """Some records, whose images are reduced; they were read before."""
    records = [source[number] for number in numbers]
    return [replace(record, image=reduced(record.image)) for record in records]
