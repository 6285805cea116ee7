"""Captioned images whose captions fit them least, by CapLoss: wrong captions of a data set.

CapLoss (arXiv 2105.13290, section 3.2) is that of the caption bundle `--rerank_with`, which should
have been trained on such images. The images are those of the captioned folder `--real`, or of
`--captions` as for table1; no other bundle takes part.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.data.records import printable
from cogview_jax.evaluation.accepted_flags import CAPTIONED
from cogview_jax.evaluation.benchmark import Measured, Options, Report, mean_of
from cogview_jax.evaluation.captioned_sets import open_captioned
from cogview_jax.evaluation.image_sets import good_images, require_readable
from cogview_jax.evaluation.page import Images
from cogview_jax.evaluation.scorer import CapLossScorer
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError

NEEDS_BUNDLE, SHARES_WORK = False, True
TAKES = ("num_prompts", "seed", "precision", "rerank_with", *CAPTIONED)
FEATURES = ()
#: Pairs that the report lists, and that the page and the table show.
LISTED, SHOWN, PRINTED = 1000, 48, 10


def run(model: CogView | None, options: Options) -> Measured:
    """Scores `options.count` pairs, chosen at random; all where there are fewer.

    Raises:
        InputError: there is no caption bundle, there are no captioned images, or a bundle is given
            that would take no part.
    """
    asked, folder = options.images, Path(options.unfinished)
    if model is not None:
        raise InputError("--benchmark worst takes no --bundle: the caption bundle is --rerank_with")
    if not options.rerank_with:
        raise InputError("--benchmark worst needs a caption bundle: --rerank_with BUNDLE")
    if asked.real is None and asked.captions is None:
        raise InputError(
            "--benchmark worst needs --real: a folder of captioned images, or --captions"
        )
    captioned = open_captioned(
        asked.captions, asked.real, count=options.count, size=0, seed=options.seed
    )
    require_readable(captioned.images, "--real")
    scorer = CapLossScorer(options.rerank_with, options.precision, folder)
    scorer.check(captioned.texts)
    losses = scorer.scores(captioned.images, captioned.texts, "true")
    # Those without an image come last.
    order = np.argsort(-losses, kind="stable").tolist()[: np.count_nonzero(~np.isnan(losses))]
    good = losses[order]
    quantiles = {f"{share:.0%}": float(np.quantile(good, share)) for share in (0.5, 0.9, 0.99)}
    pairs = [
        {
            "file": captioned.images.key(number),
            "caption": captioned.texts[number],
            "cap_loss": float(losses[number]),
        }
        for number in order[:LISTED]
    ]
    report: Report = {
        "pairs": captioned.name,
        **captioned.provenance,
        "unreadable": len(losses) - len(order),
        "cap_loss": {**mean_of(good), "quantiles": quantiles, "by": scorer.sha256},
        "worst": pairs,
    }
    ends = {"worst": order[:SHOWN], "best": order[::-1][: SHOWN // 4]}
    sections = []
    for name, numbers in ends.items():
        images = good_images(captioned.images, numbers)
        key, texts = captioned.images.key, captioned.texts
        labels = [f"{losses[i]:.3f} {key(i)}: {texts[i]}" for i in images]
        sections.append(Images(f"The {name} by CapLoss", list(images.values()), labels))
    return Measured(report, sections)


def table(report: Mapping[str, Any]) -> str:
    """The worst pairs, and where the others lie."""
    loss = report["cap_loss"]
    lines = [f"CapLoss  {loss['mean']:.3f} on average of {loss['n']:,} pairs; the worst:"]
    lines += [
        f"{pair['cap_loss']:7.3f}  {printable(pair['file'])}  {printable(pair['caption'])}"
        for pair in report["worst"][:PRINTED]
    ]
    return "\n".join(lines)
