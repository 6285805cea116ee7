"""How near two sets of images are: FID at radii of blur, KID, and the inception score.

Either set is a folder of images or a file of statistics. The networks are those of
`evaluation.features`; everything that moves a number is in the report.
"""

from pathlib import Path

from cogview_jax.evaluation.benchmark import ImageOptions, Options, Report
from cogview_jax.evaluation.clip_sets import ClipSets
from cogview_jax.evaluation.features import FEATURE_NETWORKS, FeatureExtractor
from cogview_jax.evaluation.image_sets import ImageSet, SourceImages, open_folder
from cogview_jax.evaluation.set_distances import ImageFeatures, KnownStatistics, distances
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError

NEEDS_BUNDLE, SHARES_WORK = False, True


def run(model: CogView | None, options: Options) -> Report:
    """Compares `options.images.real` with `options.images.generated`.

    Raises:
        InputError: a set or the network is missing, or does not fit the other.
    """
    if model is not None:
        raise InputError("--benchmark fid compares images: expected --real and --generated alone")
    asked = options.images
    extractor = open_extractor(asked, options.batch_size)
    sides = [open_images(getattr(asked, flag), f"--{flag}") for flag in ("real", "generated")]
    folder = Path(options.unfinished)
    real, generated = (
        KnownStatistics(side, extractor, asked.blur_kernel)
        if isinstance(side, str)
        else ImageFeatures(side, extractor, folder / name, asked.blur_kernel)
        for name, side in zip(("real", "generated"), sides, strict=True)
    )
    report = distances(real, generated, extractor, asked, options.seed)
    if "clip" in asked.features:
        first, second = sides
        if isinstance(first, str) or isinstance(second, str):
            raise InputError("--features clip: CMMD needs images on both sides, not statistics")
        clip = ClipSets(asked.features["clip"], folder)
        found = clip.distance(first, second, ("real", "generated"))
        report["cmmd"] = found | clip.describe()
    return report


def open_images(path: str | None, flag: str) -> ImageSet | str:
    """A folder of images as a set; of a file of statistics the path."""
    if path is None:
        raise InputError(f"--benchmark fid needs {flag}: a folder of images or a .npz file")
    return path if path.endswith(".npz") else SourceImages(open_folder(path, flag), path)


def open_extractor(asked: ImageOptions, batch_size: int | None = None) -> FeatureExtractor:
    """The one network of `--features` that FID is computed with.

    Raises:
        InputError: there is none, or more than one.
    """
    choices = list(FEATURE_NETWORKS)
    named = [name for name in asked.features if name in choices]
    if len(named) != 1:
        given = ", ".join(asked.features) or "none"
        raise InputError(
            f"--features {given}: FID needs one network, {' or '.join(choices)}, such as"
            f" --features {choices[0]}=FILE (see --list_features)"
        )
    (name,) = named
    size = {} if batch_size is None else {"batch_size": batch_size}
    return FeatureExtractor(name, asked.features[name], resize=asked.resize, **size)
