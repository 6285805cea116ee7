"""The paper's Figure 10: scores that people give to images of several systems, and which is best.

Where `--study` does not exist, it is made of the systems `--system`; people rate it in their
browsers (`cogview serve --study`). The report has what they have said so far: the mean of each
score and the share of votes with confidence intervals, and how far raters agree.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cogview_jax.evaluation.accepted_flags import CAPTIONED, PROMPTS, SAMPLING
from cogview_jax.evaluation.bars import Bar, bars
from cogview_jax.evaluation.benchmark import Measured, Options, Report
from cogview_jax.evaluation.human_study import QUESTIONS, Study, is_study, open_study
from cogview_jax.evaluation.page import Figure, Images, Section, Table
from cogview_jax.evaluation.study_ratings import raters, read_ratings
from cogview_jax.evaluation.study_results import INTERVAL, MEASURES, results, validity
from cogview_jax.evaluation.study_systems import make_study
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import log

NEEDS_BUNDLE, NEEDS_FLAGS = False, ("--study",)
TAKES = ("num_prompts", *SAMPLING, *CAPTIONED, *PROMPTS, "study", "system")
FEATURES = ()
#: Captions whose images the page shows.
_SHOWN = 6


def run(model: CogView | None, options: Options) -> Measured:
    """Makes the study where there is none, and says what has been rated.

    Raises:
        InputError: there is no `--study`, it or a rating is damaged, or it cannot be made.
    """
    asked = options.images
    if model is not None:
        raise InputError(
            "--benchmark figure10 compares several systems: name a bundle as --system NAME=BUNDLE"
        )
    if asked.study is None:
        raise InputError("--benchmark figure10 needs --study: a study, or a new folder for one")
    study = _study(asked.study, asked.systems, options)
    found = {rater: read_ratings(study, rater) for rater in raters(study)}
    report: Report = {
        "study": asked.study,
        "captions": len(study.captions),
        "systems": {system.name: system.source for system in study.systems},
        "raters": [
            {"rater": rater, "captions": len(ratings), **validity(study, ratings)}
            for rater, ratings in found.items()
        ],
        "interval": INTERVAL,
    }
    kept = {each["rater"] for each in report["raters"] if each["kept_in_paper"]}
    report["all"] = results(study, list(found.values()), options.seed)
    paper = [ratings for rater, ratings in found.items() if rater in kept]
    report["as_in_paper"] = results(study, paper, options.seed)
    return Measured(report, _sections(study, report))


def _study(folder: str, systems: Sequence[tuple[str, str]], options: Options) -> Study:
    names = [name for name, _ in systems]
    if not is_study(folder):
        if len(set(names)) < len(names):
            raise InputError(f"--system {', '.join(names)}: expected different names")
        return make_study(folder, dict(systems), options)
    study = open_study(folder)
    if names and set(names) != set(study.names):
        raise InputError(
            f"--study {folder} compares {', '.join(study.names)}, not {', '.join(names)}: choose"
            " another --study, or leave --system out"
        )
    if names:
        log(f"the study {folder} is there: it is not made again")
    return study


def _rows(found: Report) -> list[list[str]]:
    """A row for each system, then one of how far raters agree; the first is of names."""
    rows = [["system", *MEASURES]]
    for name, values in found["systems"].items():
        rows.append([name, *(_cell(values[measure], measure) for measure in MEASURES)])
    alpha = found["krippendorff_alpha"]
    agreed = ["-" if alpha[each] is None else f"{alpha[each]:.2f}" for each in MEASURES]
    return [*rows, ["agreement (alpha)", *agreed]]


def _cell(value: Mapping[str, Any], measure: str) -> str:
    scale, digits = (100, 1) if measure == "best" else (1, 2)
    unit = "%" if measure == "best" else ""
    text = f"{value['mean'] * scale:.{digits}f}{unit}"
    if value["low"] is None:
        return text
    return f"{text} [{value['low'] * scale:.{digits}f}, {value['high'] * scale:.{digits}f}]"


def _titled(report: Report) -> list[tuple[str, Report]]:
    """The results that there are, with what they are of."""
    titles = {"all": "All ratings", "as_in_paper": "Raters that the paper would keep"}
    found = []
    for key, title in titles.items():
        raters, ratings = report[key]["raters"], report[key]["ratings"]
        if ratings:
            found.append((f"{title} (raters: {raters}, comparisons: {ratings})", report[key]))
    return found


def table(report: Report) -> str:
    """The scores as lines for people: means, their intervals, and how far raters agree."""
    systems = ", ".join(report["systems"])
    lines = [f"{report['captions']} captions; systems: {systems}"]
    for title, found in _titled(report):
        rows = _rows(found)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["", title]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
    if len(lines) == 1:
        lines.append(f"nobody has rated yet: cogview serve --study {shlex.quote(report['study'])}")
    return "\n".join(lines)


def _sections(study: Study, report: Report) -> list[Section]:
    """Tables, bars as in the paper, and some of the images with their systems' names."""
    sections: list[Section] = []
    for title, found in _titled(report):
        names, *rows = _rows(found)
        sections.append(Table(title, names, rows))
    if report["all"]["ratings"]:
        sections += _figures(report["all"]["systems"])
        rows = [
            [" - ".join(each["systems"]), *(_cell(each[name], name) for name in MEASURES[:-1])]
            for each in report["all"]["differences"]
        ]
        names = ["pair", *MEASURES[:-1]]
        sections.append(Table("Differences of the scores of pairs, all ratings", names, rows))
    first = range(min(_SHOWN, len(study.captions)))
    pairs = [(caption, name) for caption in first for name in study.names]
    images = [study.pixels(caption, name) for caption, name in pairs]
    texts = [f"{name}: {study.captions[caption]}" for caption, name in pairs]
    return [*sections, Images("Images of the first captions", images, texts)]


def _figures(systems: Report) -> list[Section]:
    aspects = [question.name for question in QUESTIONS if question.name != "overall"]
    best = bars(_bars(systems, ["best"], 100), (0, 100), range(0, 101, 20))
    return [
        Figure("Share of votes as the best, %", best),
        Figure("Overall score", bars(_bars(systems, ["overall"]), (1, 10), range(1, 11))),
        Figure("Scores of three aspects", bars(_bars(systems, aspects), (1, 5), range(1, 6))),
    ]


def _bars(systems: Report, measures: Sequence[str], scale: float = 1) -> dict[str, dict[str, Bar]]:
    def bar(value: Mapping[str, Any]) -> Bar:
        ends = [None if value[end] is None else value[end] * scale for end in ("low", "high")]
        return Bar(value["mean"] * scale, *ends)

    return {
        measure: {name: bar(found[measure]) for name, found in systems.items()}
        for measure in measures
    }
