"""The paper's Figure 9: FID and inception score of the best of n candidates, over n.

One pool of candidates is sampled; the best of its first n by CapLoss, and by CLIP where `--features
clip=FOLDER` is given, are compared with the true images (arXiv 2105.13290, section 4.1).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cogview_jax.evaluation.accepted_flags import CAPTIONED, CHOICE, FID_NETWORKS, SAMPLING
from cogview_jax.evaluation.benchmark import ImageOptions, Measured, Options, Report, mean_of
from cogview_jax.evaluation.benchmarks.table1 import Pool
from cogview_jax.evaluation.candidates import Selected, best_of
from cogview_jax.evaluation.clip_sets import ClipSets
from cogview_jax.evaluation.metrics.frechet import frechet_distance
from cogview_jax.evaluation.page import Curves
from cogview_jax.evaluation.set_distances import ImageFeatures, SelectedFeatures, distances
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.parts import EVERY_PART

SHARES_WORK, NEEDS_FLAGS = True, ("--rerank_with", "--features")
NEEDS_PARTS, NEEDS_TASK = EVERY_PART, "text_to_image"
TAKES = ("num_prompts", *SAMPLING, *CHOICE, *CAPTIONED, "resize")
FEATURES = (*FID_NETWORKS, "clip")
#: The numbers of candidates of the paper.
COUNTS = (1, 2, 5, 10, 20, 40, 60)
#: Disjoint groups of captions whose FID gives a standard error.
GROUPS = 4


def run(model: CogView, options: Options) -> Measured:
    """The curve over those of COUNTS that the pool of `options.candidates` has.

    Raises:
        InputError: as `table1.Pool`.
    """
    pool = Pool(model, options)
    asked = ImageOptions(resize=options.images.resize)
    real = pool.features(pool.captioned.images, "real")
    # A pool of another size ends the curve.
    counts = sorted({n for n in COUNTS if n < pool.count} | {pool.count})
    best = {
        (name, n): best_of(scores, n, lowest=lowest)
        for name, scores, lowest in scorers(pool)
        for n in counts
    }
    # Features are computed of no image that nothing chooses.
    used = np.unique(np.concatenate(list(best.values())))
    every = pool.features(Selected(pool.images, used, "the chosen candidates"), "chosen")
    by: dict[str, list[Report]] = {}
    for (name, n), numbers in best.items():
        rows = np.searchsorted(used, numbers)
        found = distances(real, SelectedFeatures(every, rows), pool.extractor, asked, options.seed)
        cap_loss = pool.cap_loss.reshape(-1)[numbers]
        by.setdefault(name, []).append(
            {
                "candidates": n,
                "fid": found["fid"]["0"],
                "fid_of_groups": _groups(real, every, rows),
                "inception_score": found["inception_score"],
                "kid": found["kid"],
                "cap_loss": mean_of(cap_loss[~np.isnan(cap_loss)]),
                "n_generated": found["n_generated"],
            }
        )
    report = pool.settings() | {
        "features": pool.extractor.describe(),
        "resize": pool.extractor.resize,
        "n_real": found["n_real"],
        "notes": found["notes"],
        "by": by,
    }
    return Measured(report, list(_curves(by, pool.extractor.network)))


def _groups(
    real: ImageFeatures, every: ImageFeatures, rows: Int[np.ndarray, " n"]
) -> Report | None:
    """FID of each of GROUPS disjoint groups of captions: its mean tells less, its error more.

    Fewer images give a higher FID, by about as much for every number of candidates.
    """
    if len(rows) < 2 * GROUPS:
        return None
    values = []
    for group in range(GROUPS):
        mine = np.arange(group, len(rows), GROUPS)
        theirs = SelectedFeatures(real, mine).statistics(0)
        ours = SelectedFeatures(every, rows[mine]).statistics(0)
        values.append(frechet_distance(theirs, ours).value)
    return mean_of(np.asarray(values))


def scorers(pool: Pool) -> Iterator[tuple[str, np.ndarray, bool]]:
    """By what candidates are chosen: a name, scores [captions, candidates], lower is better."""
    yield "cap_loss", pool.cap_loss, True
    path = pool.options.images.features.get("clip")
    if path is None:
        return
    clip = ClipSets(path, Path(pool.options.unfinished))
    images = clip.images(pool.images, "candidates").reshape(-1, pool.count, clip.dimension)
    texts = clip.texts(pool.captioned.texts)
    yield "clip", np.einsum("pcd,pd->pc", images, texts), False


def table(report: Mapping[str, Any]) -> str:
    """A line for each number of candidates and each way to choose, for people."""
    lines = [f"{'chosen by':10}{'candidates':>12}{'FID':>10}{'IS':>8}{'CapLoss':>9}"]
    for name, rows in report["by"].items():
        for row in rows:
            numbers = f"{row['fid']:10.3f}{row['inception_score']['mean']:8.2f}"
            numbers += f"{row['cap_loss']['mean']:9.3f}"
            lines.append(f"{name.replace('_', ' '):10}{row['candidates']:12}{numbers}")
    return "\n".join(lines)


def _curves(by: Mapping[str, list[Report]], network: str) -> Iterator[Curves]:
    counts = [row["candidates"] for row in next(iter(by.values()))]
    names = {name: f"by {name.replace('_', ' ')}" for name in by}
    fid = {names[name]: [row["fid"] for row in rows] for name, rows in by.items()}
    errors = {
        names[name]: [row["fid_of_groups"]["standard_error"] for row in rows]
        for name, rows in by.items()
        if rows[0]["fid_of_groups"]
    }
    yield Curves(f"FID ({network}) of the best of n", counts, "candidates n", fid, errors)
    scores = {name: [row["inception_score"] for row in rows] for name, rows in by.items()}
    yield Curves(
        f"Inception score ({network}) of the best of n",
        counts,
        "candidates n",
        {names[name]: [score["mean"] for score in rows] for name, rows in scores.items()},
        {names[name]: [score["std"] for score in rows] for name, rows in scores.items()},
    )
