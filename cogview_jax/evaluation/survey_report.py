"""What a survey found, as a report for programs, a page for people, and lines for a terminal."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, Real

from cogview_jax.data.records import Record, printable
from cogview_jax.evaluation.page import Curves, Images, Listing, Section, Table
from cogview_jax.evaluation.survey import Survey, reasons
from cogview_jax.runtime.counted import counted
from cogview_jax.tokenizers.scripts import scripts_of

#: Quantiles that tell how something is spread.
_QUANTILES = {"min": 0, "p5": 0.05, "median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1}
#: Groups of duplicates that a report lists, and names of each; further ones are in the text files.
_GROUPS, _NAMES = 100, 20
#: Points of a curve.
_POINTS = 29
#: Sizes of images that are listed.
_SIZES = 10

Report = dict[str, Any]


@dataclass(frozen=True)
class TokenLengths:
    """How captions fit the text region of a sequence.

    Attributes:
        tokenizer: which text tokenizer it was, in words.
        lengths: tokens of each caption.
        region: tokens that the region holds; what is longer is cut. 0 where no text is read.
    """

    tokenizer: str
    lengths: Int[np.ndarray, " n"]
    region: int

    @property
    def cut(self) -> int:
        """How many captions are cut."""
        return int((self.lengths > self.region).sum()) if self.region else 0


@dataclass(frozen=True)
class Suggestion:
    """Flags that a user may add to the commands, and why."""

    flags: str
    why: str


@dataclass(frozen=True)
class Duplicates:
    """Groups of the numbers of records that are the same, or nearly."""

    exact: list[list[int]]
    near: list[list[int]]

    @property
    def exact_copies(self) -> list[int]:
        """All but the first of each group, ascending."""
        return sorted(number for group in self.exact for number in group[1:])

    @property
    def near_copies(self) -> list[int]:
        """The same of exact and near duplicates."""
        near = (number for group in self.near for number in group[1:])
        return sorted({*self.exact_copies, *near})


def named_once(groups: Sequence[Sequence[int]], key: Callable[[int], str]) -> list[list[int]]:
    """Groups with the first record of each name: others are the same image with other captions."""
    found: list[list[int]] = []
    for group in groups:
        first: dict[str, int] = {}
        for number in group:
            first.setdefault(key(number), number)
        found.append(list(first.values()))
    return [group for group in found if len(group) > 1]


def survey_report(
    survey: Survey,
    duplicates: Duplicates,
    key: Callable[[int], str],
    tokens: TokenLengths | None,
) -> Report:
    """Everything that was measured, as JSON has it.

    Args:
        survey: what was found.
        duplicates: in it.
        key: gives the name of a record of the source by its number.
        tokens: how captions fit; None where no text is read.
    """
    rows, columns = survey.rows["rows"], survey.rows["columns"]
    shorter, longer = np.minimum(rows, columns), np.maximum(rows, columns)
    used, bad = len(survey.rows), survey.bad
    sizes = Counter(zip(columns.tolist(), rows.tolist(), strict=True))
    report: Report = {
        "records": {
            "all": survey.records,
            "read": used + len(bad),
            "used": used,
            "filtered": sum(error.filtered for error in bad),
            "skipped": sum(not error.filtered for error in bad),
        },
        "not_used": reasons(bad),
        "images": {
            "width": spread(columns),
            "height": spread(rows),
            "shorter_side": spread(shorter),
            "aspect_ratio": spread(longer / shorter),
            "landscape": int((columns > rows).sum()),
            "square": int((columns == rows).sum()),
            "portrait": int((columns < rows).sum()),
            "central_square_keeps": _rounded(float((shorter / longer).mean())),
            "most_common_sizes": {f"{w} x {h}": n for (w, h), n in sizes.most_common(_SIZES)},
        },
        "pixels": {
            "mean": [_rounded(value) for value in survey.mean],
            "std": [_rounded(value) for value in survey.std],
        },
        "duplicates": {
            "exact": _groups(duplicates.exact, key),
            "near": _groups(duplicates.near, key),
        },
        "reading": {"records_per_second": round(survey.rate, 1), "threads": survey.threads},
    }
    if texts := survey.texts:
        report["captions"] = _captions(survey, texts, tokens)
    return report


def _captions(survey: Survey, texts: Sequence[str], tokens: TokenLengths | None) -> Report:
    scripts = Counter(" + ".join(scripts_of(text)) or "no letters" for text in texts)
    found: Report = {
        "captions": len(texts),
        "distinct": len(set(texts)),
        "records_without": sum(not captions for captions in survey.captions),
        "characters": spread(np.array([len(text) for text in texts])),
        "scripts": dict(scripts.most_common()),
    }
    if tokens is not None:
        found |= {
            "tokens": spread(tokens.lengths),
            "text_tokenizer": tokens.tokenizer,
            "text_length": tokens.region,
            "cut": tokens.cut,
            "cut_share": _rounded(tokens.cut / len(texts)),
        }
    return found


def spread(values: Real[np.ndarray, " n"]) -> dict[str, float]:
    """Quantiles of some values, each one of the values."""
    found = np.quantile(values, list(_QUANTILES.values()), method="inverted_cdf")
    return {name: _rounded(x.item()) for name, x in zip(_QUANTILES, found, strict=True)}


def _groups(groups: Sequence[Sequence[int]], key: Callable[[int], str]) -> Report:
    largest = sorted(groups, key=lambda group: (-len(group), group[0]))
    listed = [[printable(key(number)) for number in group[:_NAMES]] for group in largest[:_GROUPS]]
    return {"groups": len(groups), "records": sum(map(len, groups)), "listed": listed}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else round(float(value), 4)


def summary(report: Mapping[str, Any]) -> dict[str, str]:
    """The main numbers of a report, a line each by what they are of."""
    records, images, pixels = report["records"], report["images"], report["pixels"]
    sample = (
        "" if records["read"] == records["all"] else f" of {records['all']:,}, chosen at random"
    )
    filters = f", {records['filtered']:,} left out by data.filter" if records["filtered"] else ""
    low, middle, high = (images["shorter_side"][name] for name in ("min", "median", "max"))
    exact, near = (report["duplicates"][name] for name in ("exact", "near"))
    mean, std = (" ".join(f"{x:.3f}" for x in pixels[name]) for name in ("mean", "std"))
    lines = {
        "records": f"{records['read']:,}{sample}: {records['used']:,} used,"
        f" {records['skipped']:,} skipped{filters}",
        "images": f"shorter side {low:,} to {high:,} pixels, median {middle:,}; central squares"
        f" keep {images['central_square_keeps']:.0%} of an image",
        "pixels": f"mean {mean}, std {std} (red, green, blue)",
        "duplicates": f"{exact['records']:,} in groups of the same pixels ({exact['groups']:,}),"
        f" {near['records']:,} in groups of nearly the same ({near['groups']:,})",
        "reading": f"{report['reading']['records_per_second']:,.0f} records a second with"
        f" {report['reading']['threads']} threads",
    }
    if captions := report.get("captions"):
        scripts = ", ".join(f"{name} {n:,}" for name, n in list(captions["scripts"].items())[:5])
        lines["captions"] = (
            f"{captions['captions']:,}, {captions['distinct']:,} of them distinct; {scripts}"
        )
        if "tokens" in captions:
            tokens = captions["tokens"]
            lines["tokens"] = (
                f"{tokens['min']:,} to {tokens['max']:,}, median {tokens['median']:,}, 99% at most"
                f" {tokens['p99']:,}; {captions['cut_share']:.1%} of captions are cut at"
                f" layout.text_length = {captions['text_length']:,}"
            )
    order = ("records", "images", "pixels", "captions", "tokens", "duplicates", "reading")
    return {name: lines[name] for name in order if name in lines}


def sections(
    report: Report,
    survey: Survey,
    tokens: TokenLengths | None,
    suggestions: Sequence[Suggestion],
    near: Sequence[Sequence[Record]],
) -> list[Section]:
    """What the page of a survey shows before the table of all numbers.

    Args:
        report: of `survey_report`, with `problems`, lines that warn.
        survey: what was found.
        tokens: how captions fit.
        suggestions: for the user.
        near: some groups of near duplicates, with reduced images.
    """
    rows, columns = survey.rows["rows"], survey.rows["columns"]
    shorter, longer = np.minimum(rows, columns), np.maximum(rows, columns)
    short = [*summary(report).items(), *(("warning", text) for text in report["problems"])]
    found: list[Section] = [Table("In short", ("", ""), short)]
    if suggestions:
        lines = [f"# {x.why}\n{x.flags}" for x in suggestions]
        found.append(Listing("Suggestions", "\n".join(lines)))
    if report["not_used"]:
        cells = [[x["records"], x["reason"], "; ".join(x["examples"])] for x in report["not_used"]]
        found.append(Table("Records that are not used", ("records", "reason", "such as"), cells))
    pairs = [(record.image, " / ".join(record.captions) or record.key) for record in survey.shown]
    if pairs:
        images, texts = zip(*pairs, strict=True)
        found.append(Images(f"{counted(len(pairs), 'record')}, chosen at random", images, texts))
    found += _distribution("Images whose shorter side is at most so long", shorter, "pixels")
    found += _distribution(
        "Images whose aspect ratio is at most so large", longer / shorter, "ratio"
    )
    if tokens is not None:
        found += _distribution("Captions with at most so many tokens", tokens.lengths, "tokens")
    for number, group in enumerate(near, 1):
        title = f"Near duplicates, group {number} of {report['duplicates']['near']['groups']:,}"
        found.append(Images(title, [x.image for x in group], [x.key for x in group]))
    return found


def _distribution(title: str, values: Real[np.ndarray, " n"], unit: str) -> list[Section]:
    """The share of values up to each of some, at most the 99% quantile; nothing of equal values."""
    found = spread(values)
    decimals = 0 if np.issubdtype(values.dtype, np.integer) else 1
    at = np.unique(np.linspace(found["min"], found["p99"], _POINTS).round(decimals))
    if len(at) < 2:
        return []
    shares = np.searchsorted(np.sort(values), at, side="right") / len(values)
    return [Curves(title, at.tolist(), unit, {"share of all": shares.tolist()})]


def as_json(suggestions: Sequence[Suggestion]) -> list[dict[str, str]]:
    """Suggestions as a report has them."""
    return [asdict(suggestion) for suggestion in suggestions]
