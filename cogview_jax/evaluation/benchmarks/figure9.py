"""The paper's Figure 9: FID and inception score of the best of n candidates, over n.

One pool of candidates is sampled; the best of its first n by CapLoss, and by CLIP where `--features
clip=FOLDER` is given, are compared with the true images (arXiv 2105.13290, section 4.1).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cogview_jax.evaluation.benchmark import ImageOptions, Measured, Options, Report
from cogview_jax.evaluation.benchmarks.table1 import Pool
from cogview_jax.evaluation.candidates import best_of
from cogview_jax.evaluation.clip_sets import ClipSets
from cogview_jax.evaluation.page import Curves
from cogview_jax.evaluation.set_distances import Chosen, distances
from cogview_jax.pipeline.cogview import CogView

SHARES_WORK = True
#: The numbers of candidates of the paper.
COUNTS = (1, 2, 5, 10, 20, 40, 60)


def run(model: CogView, options: Options) -> Measured:
    """The curve over those of COUNTS that the pool of `options.candidates` has.

    Raises:
        InputError: as `table1.Pool`.
    """
    pool = Pool(model, options)
    asked = ImageOptions(resize=options.images.resize)
    real = pool.features(pool.captioned.images, "real")
    every = pool.features(pool.images, "generated")
    # A pool of another size ends the curve.
    counts = sorted({n for n in COUNTS if n < pool.count} | {pool.count})
    by: dict[str, list[Report]] = {}
    for name, scores, lowest in scorers(pool):
        for n in counts:
            chosen = Chosen(every, best_of(scores, n, lowest=lowest))
            found = distances(real, chosen, pool.extractor, asked, options.seed)
            cap_loss = pool.cap_loss.reshape(-1)[best_of(scores, n, lowest=lowest)]
            by.setdefault(name, []).append(
                {
                    "candidates": n,
                    "fid": found["fid"]["0"],
                    "inception_score": found["inception_score"],
                    "kid": found["kid"],
                    "cap_loss": float(np.nanmean(cap_loss.astype(np.float64))),
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
            score = (row["inception_score"] or {}).get("mean", float("nan"))
            lines.append(
                f"{name.replace('_', ' '):10}{row['candidates']:12}{row['fid']:10.3f}{score:8.2f}"
                f"{row['cap_loss']:9.3f}"
            )
    return "\n".join(lines)


def _curves(by: Mapping[str, list[Report]], network: str) -> Iterator[Curves]:
    counts = [row["candidates"] for row in next(iter(by.values()))]
    fid = {f"by {name.replace('_', ' ')}": [row["fid"] for row in by[name]] for name in by}
    yield Curves(f"FID ({network}) of the best of n", counts, "candidates n", fid)
    score = {
        f"by {name.replace('_', ' ')}": [row["inception_score"]["mean"] for row in by[name]]
        for name in by
    }
    yield Curves(f"Inception score ({network}) of the best of n", counts, "candidates n", score)
