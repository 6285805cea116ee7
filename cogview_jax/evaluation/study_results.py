"""What the ratings of a study say: means with intervals, differences, and how far raters agree."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cogview_jax.evaluation.benchmark import Report
from cogview_jax.evaluation.human_study import QUESTIONS, Study
from cogview_jax.evaluation.metrics.agreement import krippendorff_alpha
from cogview_jax.evaluation.metrics.crossed_bootstrap import crossed_interval, share_interval
from cogview_jax.evaluation.study_ratings import Rating

#: What is said of each system: its scores, and the share of votes as the best.
MEASURES = (*(question.name for question in QUESTIONS), "best")
#: Of the bootstrap.
DRAWS, LEVEL = 2000, 0.95
#: How intervals are computed, for reports.
INTERVAL = {
    "level": LEVEL,
    "of_scores": "percentiles of a crossed bootstrap of raters and captions",
    "of_best": "Wilson, with the variance of that bootstrap",
    "draws": DRAWS,
}
#: The paper keeps raters who have rated everything and whose best image has the highest overall
#: score for more than this share of captions.
CONSISTENT = 0.8


def validity(study: Study, ratings: Mapping[int, Rating]) -> Report:
    """Whether the paper would keep a rater."""
    if not ratings:
        return {"best_has_most": None, "kept_in_paper": False}
    share = float(np.mean([rating.best_has_most for rating in ratings.values()]))
    kept = len(ratings) == len(study.captions) and share > CONSISTENT
    return {"best_has_most": share, "kept_in_paper": kept}


@dataclass(frozen=True)
class _Arrays:
    """Ratings as arrays; NaN, or -1, where a rater has not rated a caption.

    Attributes:
        scores: [raters, captions, systems, questions].
        best: [raters, captions], the number of the system.
    """

    scores: Float[np.ndarray, "r c s q"]
    best: Int[np.ndarray, "r c"]

    @property
    def votes(self) -> Float[np.ndarray, "r c s"]:
        """1 for the best system, 0 for the others."""
        best = self.best[..., None]
        return np.where(best < 0, np.nan, best == np.arange(self.scores.shape[2]))


def _arrays(study: Study, found: Sequence[Mapping[int, Rating]]) -> _Arrays:
    shape = len(found), len(study.captions)
    scores = np.full((*shape, len(study.systems), len(QUESTIONS)), np.nan)
    best = np.full(shape, -1)
    for r, ratings in enumerate(found):
        for c, rating in ratings.items():
            best[r, c] = study.names.index(rating.best)
            scores[r, c] = [
                [rating.scores[name][question.name] for question in QUESTIONS]
                for name in study.names
            ]
    return _Arrays(scores, best)


def results(study: Study, found: Sequence[Mapping[int, Rating]], seed: int) -> Report:
    """What some raters have said: the ratings of each, by the number of the caption.

    Of the pairs of systems the differences have intervals of their own: that some raters are strict
    and some captions hard moves both systems of a pair alike.
    """
    found = [ratings for ratings in found if ratings]
    report: Report = {"raters": len(found), "ratings": sum(map(len, found))}
    if not found:
        return report
    arrays = _arrays(study, found)
    # Of a single rating nothing can be said of others.
    single, names = report["ratings"] == 1, [question.name for question in QUESTIONS]
    scores = _estimates(arrays.scores, None if single else crossed_interval, seed)
    votes = _estimates(arrays.votes, None if single else share_interval, seed)
    spread = np.nanstd(arrays.scores, axis=(0, 1)).tolist()
    report["systems"] = {
        name: {
            measure: estimate | {"standard_deviation": deviation}
            for measure, estimate, deviation in zip(names, scores[s], spread[s], strict=True)
        }
        | {"best": votes[s]}
        for s, name in enumerate(study.names)
    }
    pairs = list(itertools.combinations(range(len(study.systems)), 2))
    first, second = zip(*pairs, strict=True)
    between = arrays.scores[:, :, first] - arrays.scores[:, :, second]
    estimates = _estimates(between, None if single else crossed_interval, seed)
    report["differences"] = [
        {"systems": [study.names[i] for i in pair]} | dict(zip(names, row, strict=True))
        for pair, row in zip(pairs, estimates, strict=True)
    ]
    units = arrays.scores.reshape(len(found), -1, len(QUESTIONS))
    best = np.where(arrays.best < 0, np.nan, arrays.best)
    report["krippendorff_alpha"] = {
        name: krippendorff_alpha(units[..., q], "ordinal") for q, name in enumerate(names)
    } | {"best": krippendorff_alpha(best, "nominal")}
    return report


def _estimates(
    values: Float[np.ndarray, "r c ..."], interval: Callable[..., Any] | None, seed: int
) -> list[Any]:
    """Means over raters and captions with the ends of their intervals, in nested lists."""
    means = np.nanmean(values, axis=(0, 1))
    low = high = np.full(means.shape, None)
    if interval is not None:
        low, high = interval(values, draws=DRAWS, level=LEVEL, seed=seed)

    def paired(mean: Any, low: Any, high: Any) -> Any:
        if isinstance(mean, list):
            return [paired(*each) for each in zip(mean, low, high, strict=True)]
        return {"mean": mean, "low": low, "high": high}

    return paired(means.tolist(), low.tolist(), high.tolist())
