"""How well a bundle has learned a style of the emoji: is the style right, and is the concept.

`--real` is the folder `held_out` that `examples/emoji/make.sh folder --embedded` writes of one
style, with `train` beside it. From the one come the objects that `--prompt` asks for in the style's
name, as "{object} of outline style"; from the other, all that finetuning has seen, the judge
(`evaluation.emoji_judge`) learns the style beside the four embedded ones. It learns from images
that have gone through the bundle's image tokenizer, as all have that the bundle generates: of a
style that the tokenizer has not learned, its blur says more than the style. Beside the shares of
generated images that are judged right are those of the true images through the image tokenizer,
which are the ceiling and tell how often the judge itself is wrong, and chance.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cogview_jax.data import emoji_set
from cogview_jax.evaluation.accepted_flags import FID_NETWORKS, SAMPLING
from cogview_jax.evaluation.benchmark import Measured, Options, Report
from cogview_jax.evaluation.benchmarks.emoji import RIGHT, Asked, shares
from cogview_jax.evaluation.benchmarks.fid import open_extractor
from cogview_jax.evaluation.candidates import CodedImages, Squares, encode_images, sample_asked
from cogview_jax.evaluation.emoji_judge import EmojiJudge, Judged
from cogview_jax.evaluation.features import FEATURE_NETWORKS
from cogview_jax.evaluation.image_sets import (
    ImageSet,
    SourceImages,
    good_images,
    open_folder,
    require_readable,
)
from cogview_jax.evaluation.page import Images
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError

NEEDS_FLAGS = ("--real", "--prompt")
TAKES, FEATURES = ("num_prompts", *SAMPLING, "real", "prompt"), FID_NETWORKS
#: What a pattern of prompts has in the place of the object.
OBJECT = "{object}"
#: What the styles are called in a report, in the order of their numbers.
STYLES = (*(style.name for style in emoji_set.STYLES), "new")
_EXPECTED = (
    "expected the folder held_out, with train beside it, that `examples/emoji/make.sh folder"
    " --embedded` writes of one style"
)
#: Images that the page shows.
_SHOWN = 64


def run(model: CogView, options: Options) -> Measured:
    """Measures about `options.count` images, as many of each concept that is held out.

    Raises:
        InputError: the bundle lacks a part or is of another task, `--real` is not the folder that
            is expected, or `--prompt` is not one pattern.
    """
    model.need("transformer", "text", "codec")
    model.need_task("text_to_image")
    folder, size = Path(options.unfinished), model.codec.config.image_size
    held_out, seen = _opened(options.images.real)
    numbers = _concepts(held_out)
    pattern = _pattern(options.images.prompts)
    texts = [pattern.replace(OBJECT, emoji_set.concepts()[number].en) for number in numbers]
    model.prompts.pieces_of(texts)
    styles = np.full(len(texts), STYLES.index("new"))
    asked = Asked(np.array(numbers), styles, ("en",) * len(texts), texts)
    named = options.images.features.keys() & FEATURE_NETWORKS.keys()
    extractor = open_extractor(options.images) if named else None
    # Nothing the user may have got wrong is left.

    def decoded(images: ImageSet, name: str) -> CodedImages:
        place, bundle = folder / f"{name}_codes", options.bundle
        return encode_images(model, images, place, bundle=bundle, precision=options.precision)

    judge = EmojiJudge(size, extractor, folder, Squares(seen, size), decoded)
    true = decoded(Squares(held_out, size), "held_out")
    each = -(-options.count // len(texts))
    generated = sample_asked(model, texts, each, folder / "generated", options)
    judged = judge(judge.features(generated, "generated"))
    found = Counter(judged.styles.tolist())
    report: Report = {
        "judge": {"features": judge.describe(), "style_learned_from": len(seen)},
        "prompt": pattern,
        "prompts": len(texts),
        "images": len(generated),
        "generated": shares(judged, asked),
        "ceiling": shares(judge(judge.features(true, "held_out")), asked),
        "chance": _chance(),
        "styles": {name: found[style] / len(generated) for style, name in enumerate(STYLES)},
    }
    return Measured(report, [_shown(generated, judged, asked, each)])


def _opened(real: str | None) -> tuple[SourceImages, SourceImages]:
    """The true images of the concepts to ask for, and those that the judge learns from."""
    if real is None:
        raise InputError(f"--benchmark style needs --real: {_EXPECTED}")
    train = str(Path(real).resolve().parent / "train")
    sets = []
    for path, flag in ((real, "--real"), (train, "--real, train beside it,")):
        images = SourceImages(open_folder(path, flag), path)
        require_readable(images, flag)
        sets.append(images)
    return sets[0], sets[1]


def _concepts(images: SourceImages) -> list[int]:
    """The numbers of the concepts that files are named by: "openmoji/1f98b.webp"."""
    known = {concept.code: number for number, concept in enumerate(emoji_set.concepts())}
    codes = [PurePosixPath(images.key(number)).stem for number in range(len(images))]
    for code in codes:
        if code not in known:
            raise InputError(f"--real {images.name}: {_EXPECTED}; {code} is no embedded concept")
    if len(set(codes)) < len(codes):
        raise InputError(f"--real {images.name}: {_EXPECTED}; some concepts are there twice")
    return [known[code] for code in codes]


def _pattern(prompts: tuple[str, ...]) -> str:
    if len(prompts) != 1 or OBJECT not in prompts[0]:
        raise InputError(
            f"--prompt {prompts!r}: expected one pattern with {OBJECT} in the place of the concept,"
            f' such as --prompt "{OBJECT} of outline style"'
        )
    return prompts[0]


def _chance() -> Report:
    concept, style = 1 / len(emoji_set.concepts()), 1 / len(STYLES)
    return dict(zip(RIGHT, (concept, style, concept * style), strict=True))


def _shown(images: ImageSet, judged: Judged, asked: Asked, each: int) -> Images:
    """The first image of each prompt, with what the judge takes it for where that is wrong."""
    first = [prompt * each for prompt in range(min(len(asked.texts), _SHOWN))]
    captions = []
    for prompt, number in enumerate(first):
        concept, style = int(judged.concepts[number]), int(judged.styles[number])
        captions.append(asked.texts[prompt])
        if (concept, style) != (asked.concepts[prompt], asked.styles[prompt]):
            captions[-1] += f" (judged: {emoji_set.concepts()[concept].en}, {STYLES[style]} style)"
    return Images("Generated images", list(good_images(images, first).values()), captions)


def table(report: Mapping[str, Any]) -> str:
    """The shares as lines for people."""
    lines = [f"{'':10}" + "".join(f"{part:>9}" for part in RIGHT)]
    for row in ("generated", "ceiling", "chance"):
        lines.append(f"{row:10}" + "".join(f"{report[row][part]:9.3f}" for part in RIGHT))
    styles = ", ".join(f"{name} {share:.3f}" for name, share in report["styles"].items())
    lines.append(f"styles of generated images: {styles}")
    lines.append(f"{report['images']} images of {report['prompts']} prompts, {report['prompt']!r}")
    return "\n".join(lines)
