"""Distances of two sets of images by their features: FID at several radii, KID, inception score."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from cogview_jax.evaluation.benchmark import ImageOptions, Report
from cogview_jax.evaluation.features import FeatureExtractor
from cogview_jax.evaluation.image_sets import ImageSet, StoredFeatures, stored_features
from cogview_jax.evaluation.metrics.frechet import fid_infinity, frechet_distance
from cogview_jax.evaluation.metrics.inception_score import inception_score
from cogview_jax.evaluation.metrics.kernel_distance import kernel_distance
from cogview_jax.evaluation.metrics.moments import Moments
from cogview_jax.evaluation.metrics.precision_recall import precision_recall
from cogview_jax.evaluation.reference_statistics import (
    Provenance,
    ReferenceStatistics,
    check_comparable,
    read_statistics,
    write_statistics,
)
from cogview_jax.evaluation.resize import RESIZES
from cogview_jax.runtime.errors import InputError

#: Splits of the inception score.
SPLITS = 10
#: Where the random numbers of KID and the inception score begin: with seed 0 their subsets and
#: splits are those of torch-fidelity.
FIRST_SEED = 2020
#: The fewest images that `fid_infinity` extrapolates from: its 15 subsets, the smallest of half of
#: the images, have different sizes.
LEAST_FOR_INFINITY = 27


class FeatureSet(Protocol):
    """A set of images as far as a distance needs to know it; `name` is for people."""

    name: str

    def statistics(self, radius: int) -> ReferenceStatistics:
        """Mean and covariance of its features after a blur of this radius."""
        ...

    def features(self, radius: int) -> StoredFeatures | None:
        """The features of its images after a blur; None where only statistics are known."""
        ...


class ImageFeatures:
    """A set whose images are at hand; features are computed when they are asked for."""

    def __init__(
        self, images: ImageSet, extractor: FeatureExtractor, folder: Path, kernel: str = "pil"
    ):
        """folder: for the features, a folder a radius in it. kernel: of the blur of FID-k."""
        self.name, self._images, self._extractor = images.name, images, extractor
        self._folder, self._kernel = folder, kernel
        self._found: dict[int, StoredFeatures] = {}

    def features(self, radius: int) -> StoredFeatures:
        """See `FeatureSet`."""
        if radius not in self._found:
            label = f"{self._folder.name}, blur {radius}" if radius else self._folder.name
            found = stored_features(
                self._images,
                self._extractor,
                self._folder / f"blur_{radius}",
                radius=radius,
                kernel=self._kernel,
                label=label,
            )
            self._found[radius] = found
        return self._found[radius]

    def statistics(self, radius: int) -> ReferenceStatistics:
        """See `FeatureSet`."""
        return self.statistics_of(self.features(radius), radius)

    @property
    def unreadable(self) -> int:
        """How many of the images cannot be read."""
        found = self.features(min(self._found, default=0))
        return found.store.count - len(found)

    def statistics_of(self, features: StoredFeatures, radius: int) -> ReferenceStatistics:
        """The statistics of some of the features of this set at a radius."""
        moments = Moments.of(features.pooled)
        if moments.count < 2:
            raise InputError(f"{self.name}: {moments.count} image, expected at least 2")
        network = self._extractor
        kernel = self._kernel if radius else ""
        provenance = Provenance(
            network.network, network.sha256, network.resize, radius, kernel, self.name
        )
        return ReferenceStatistics.of(moments, provenance)


class SelectedFeatures:
    """Some images of a set whose features are computed for all of it."""

    def __init__(self, every: ImageFeatures, numbers: Int[np.ndarray, " n"]):
        """numbers: of the images that are chosen."""
        self.name, self._every, self._numbers = every.name, every, numbers

    def features(self, radius: int) -> StoredFeatures:
        """See `FeatureSet`."""
        every = self._every.features(radius)
        return replace(every, good=self._numbers[np.isin(self._numbers, every.good)])

    def statistics(self, radius: int) -> ReferenceStatistics:
        """See `FeatureSet`."""
        return self._every.statistics_of(self.features(radius), radius)


class KnownStatistics:
    """A set of which a file has the statistics."""

    def __init__(self, path: str, extractor: FeatureExtractor, kernel: str = "pil"):
        """Reads them; `kernel` is that of the blur of FID-k.

        Raises:
            InputError: the file cannot be read, or is of another network or protocol than those of
                `extractor`.
        """
        self.name, self._statistics, self._kernel = path, read_statistics(path), kernel
        if len(self._statistics.mean) != extractor.dimension:
            raise InputError(
                f"{path} has statistics of {len(self._statistics.mean):,} features,"
                f" {extractor.network} has {extractor.dimension:,}"
            )
        ours = Provenance(extractor.network, extractor.sha256, extractor.resize)
        theirs = self._statistics.provenance
        check_comparable((path, theirs), ("the other set", ours), blur=False)

    def features(self, radius: int) -> None:
        """There are none."""

    def statistics(self, radius: int) -> ReferenceStatistics:
        """Those of the file; InputError where they are of another blur."""
        known = self._statistics.provenance
        if known is not None and (known.blur, known.blur_kernel) != (
            radius,
            self._kernel if radius else "",
        ):
            blur = f"{known.blur} {known.blur_kernel}".strip()
            expected = f"{radius} {self._kernel}" if radius else "0"
            raise InputError(
                f"{self.name} is of images with a blur of {blur}, expected one of {expected}"
            )
        return self._statistics


def distances(
    real: FeatureSet,
    generated: FeatureSet,
    extractor: FeatureExtractor,
    asked: ImageOptions,
    seed: int,
) -> Report:
    """What `--benchmark fid` reports of two sets.

    fid is an object from radius to value; blur says how it was blurred, and which sets were. kid
    and inception_score are of images without blur, and None where there are only statistics.

    Args:
        real, generated: the two sets.
        extractor: of their features.
        asked: radii, the sets that are blurred, whether FID is extrapolated, and the file in which
            the statistics of the real images are kept.
        seed: of the subsets of KID and of the extrapolation, and of the splits of the inception
            score.

    Raises:
        InputError: a set is too small, or statistics are of another blur.
    """
    fid: dict[str, float] = {}
    notes: list[str] = []
    counts: Report = {}
    for radius in asked.blur:
        theirs = real.statistics(radius)
        ours = generated.statistics(radius if asked.blur_sets == "both" else 0)
        found = frechet_distance(theirs, ours)
        fid[str(radius)] = found.value
        counts = dict(zip(("n_real", "n_generated"), found.n, strict=True))
        if found.note and found.note not in notes:
            notes.append(found.note)
        if radius == asked.blur[0] and asked.save_statistics:
            write_statistics(asked.save_statistics, theirs)
    report: Report = {"real": real.name, "generated": generated.name, "fid": fid}
    if asked.blur != (0,):
        report["blur"] = {"kernel": asked.blur_kernel, "sets": asked.blur_sets}
    report |= _of_features(real, generated, asked, seed, notes)
    if not RESIZES[extractor.resize].comparable:
        notes.append(f"resize {extractor.resize}: {RESIZES[extractor.resize].description}")
    return report | {
        **counts,
        "features": extractor.describe(),
        "dimension": extractor.dimension,
        "resize": extractor.resize,
        "seed": seed,
        "notes": notes,
    }


def _of_features(
    real: FeatureSet, generated: FeatureSet, asked: ImageOptions, seed: int, notes: list[str]
) -> Report:
    """KID, the inception score and FID at infinity, where there are features for them."""
    report: Report = {"kid": None, "inception_score": None}
    ours, theirs = generated.features(0), real.features(0)
    if ours is None or theirs is None:
        notes.append("statistics alone: what needs features of both sets is not measured")
    if ours is None:
        return report
    # The release's evaluation takes all images as one split, in their order.
    released = asked.resize == "release"
    splits = 1 if released else min(SPLITS, len(ours))
    random = (FIRST_SEED + seed) % 2**32
    score = inception_score(
        ours.logits, splits, seed=random, shuffle=not released, equal_splits=released
    )
    report["inception_score"] = asdict(score) | {"seed": None if released else random}
    if (each := len(ours) // splits) < ours.logits.shape[1]:
        notes.append(
            f"inception score is biased downwards: that of a split of {each:,} images cannot exceed"
            f" {each:,}"
        )
    if asked.fid_infinity:
        report["fid_infinity"] = None
        if len(ours) < LEAST_FOR_INFINITY:
            notes.append(
                f"FID of infinitely many images is not extrapolated from {len(ours)}: expected at"
                f" least {LEAST_FOR_INFINITY}"
            )
        else:
            infinite = fid_infinity(ours.pooled, real.statistics(0), seed=seed)
            report["fid_infinity"] = asdict(infinite)
    if theirs is not None and asked.precision_recall:
        every = slice(None)
        measured = precision_recall(theirs.pooled[every], ours.pooled[every])
        report["precision_recall"] = asdict(measured)
    if theirs is not None:
        kid = kernel_distance(theirs.pooled, ours.pooled, seed=random)
        report["kid"] = asdict(kid) | {"seed": random}
        if kid.note:
            notes.append(kid.note)
    return report


def lines_of(report: Mapping[str, Any]) -> list[str]:
    """The numbers of what `distances` reports as lines for people, each with all it depends on."""
    network, resize = report["features"]["name"], report["resize"]
    n = f"N = {report['n_real'] or 'unknown'} real, {report['n_generated'] or 'unknown'} generated"
    blur = report.get("blur")
    lines = []
    for radius, value in report["fid"].items():
        of = (
            f", blur {radius} by {blur['kernel']} of {blur['sets']}"
            if blur and radius != "0"
            else ""
        )
        lines.append(f"FID ({network}, {resize}{of}): {value:.4f}")
    if found := report.get("fid_infinity"):
        value = f"{found['value']:.4f} +- {found['standard_error']:.4f}"
        lines.append(f"FID of infinitely many ({network}, {resize}): {value}")
    if found := report.get("kid"):
        subsets = f"{found['subsets']} subsets of {found['subset_size']}"
        value = f"{found['mean']:.6f}, deviation {found['std']:.6f}"
        lines.append(f"KID ({network}, {resize}, {subsets}): {value}")
    if found := report.get("inception_score"):
        value = f"{found['mean']:.4f}, deviation {found['std']:.4f}"
        lines.append(f"inception score ({network}, {resize}, {found['splits']} splits): {value}")
    if found := report.get("precision_recall"):
        shares = f"{found['precision']:.4f}, {found['recall']:.4f}"
        lines.append(f"precision, recall ({network}, {resize}): {shares}")
    return [*lines, n]
