"""How near two sets of images are: FID at radii of blur, KID, and the inception score.

Either set is a folder of images, a file of statistics, or a bundle, which samples an image for each
prompt. The networks are those of `evaluation.features`; everything that moves a number is in the
report.
"""

from pathlib import Path

from cogview_jax.checkpoints.bundle import identity
from cogview_jax.checkpoints.step_bundle import is_bundle, located
from cogview_jax.data.sources.source import readable
from cogview_jax.evaluation.accepted_flags import BLUR, DISTANCES, FID_NETWORKS, PROMPTS, SAMPLING
from cogview_jax.evaluation.benchmark import ImageOptions, Options, Report
from cogview_jax.evaluation.candidates import CodedImages, sample_candidates
from cogview_jax.evaluation.clip_sets import ClipSets
from cogview_jax.evaluation.features import FEATURE_NETWORKS, FeatureExtractor
from cogview_jax.evaluation.image_sets import ImageSet, SourceImages, open_folder, require_readable
from cogview_jax.evaluation.set_distances import ImageFeatures, KnownStatistics, distances, lines_of
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.errors import InputError

NEEDS_BUNDLE, SHARES_WORK = False, True
TAKES = (*SAMPLING, "real", "generated", *PROMPTS, *DISTANCES, "blur", *BLUR)
FEATURES = (*FID_NETWORKS, "clip")


def run(model: CogView | None, options: Options) -> Report:
    """Compares `options.images.real` with `options.images.generated`.

    Raises:
        InputError: a set or the network is missing, or does not fit the other.
    """
    if model is not None:
        raise InputError("--benchmark fid compares two sets: name a bundle as --generated BUNDLE")
    asked = options.images
    extractor = open_extractor(asked, options.batch_size)
    sides = [open_images(getattr(asked, flag), flag, options) for flag in ("real", "generated")]
    if "clip" in asked.features and any(isinstance(side, str) for side in sides):
        raise InputError("--features clip: CMMD needs images on both sides, not statistics")
    folder = Path(options.unfinished)
    real, generated = (
        KnownStatistics(side, extractor, asked.blur_kernel)
        if isinstance(side, str)
        else ImageFeatures(side, extractor, folder / name, asked.blur_kernel)
        for name, side in zip(("real", "generated"), sides, strict=True)
    )
    report = distances(real, generated, extractor, asked, options.seed)
    for name, side in (("real", real), ("generated", generated)):
        if isinstance(side, ImageFeatures):
            report[f"unreadable_{name}"] = side.unreadable
    for name, images in zip(("real", "generated"), sides, strict=True):
        if isinstance(images, CodedImages):
            report[f"samples_{name}"] = images.identity
    if "clip" in asked.features:
        first, second = (side for side in sides if not isinstance(side, str))
        clip = ClipSets(asked.features["clip"], folder)
        found = clip.distance(first, second, ("real", "generated"))
        report["cmmd"] = found | clip.describe()
    return report


def table(report: Report) -> str:
    """A line for each number, with the network and the protocol, for people."""
    lines = lines_of(report)
    if found := report.get("cmmd"):
        lines.append(f"CMMD (clip): {found['value']:.4f}")
    return "\n".join(lines)


def open_images(path: str | None, flag: str, options: Options) -> ImageSet | str:
    """A folder of images, or what a bundle samples, as a set; of a file of statistics the path.

    A bundle, or a workdir or step that stands for one, samples an image for each of
    `options.images.prompts`, or, where there are none, for a caption of each image of the folder
    `--real`.
    """
    if path is None:
        raise InputError(
            f"--benchmark fid needs --{flag}: a folder of images, a bundle, or a .npz file"
        )
    if not is_bundle(path):
        if path.endswith(".npz"):
            return path
        images = SourceImages(open_folder(path, f"--{flag}"), path)
        require_readable(images, f"--{flag}")
        return images
    prompts, real = options.images.prompts, options.images.real
    if not prompts and flag == "generated" and real is not None and Path(real).is_dir():
        source = open_folder(real, "--real", captions=True)
        prompts = tuple(record.captions[0] for record in readable(source))
    if not prompts:
        raise InputError(f"--{flag} {path} is a bundle: expected --prompts FILE, or --prompt TEXT")
    path = located(path)
    model = load(path, dtype=options.precision, needs=EVERY_PART, task="text_to_image")
    return sample_candidates(
        model,
        prompts,
        1,
        Path(options.unfinished) / f"{flag}_samples",
        bundle=identity(path),
        seed=options.seed,
        sampling=options.sampling(model),
        precision=options.precision,
        batch_size=options.batch_size,
    )


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
