"""How often a model draws what the caption says, on the captioned shapes."""

from collections.abc import Callable, Sequence

import numpy as np

from cogview_jax.data.shapes import SPLITS, Scene, caption, draw, sample_scene
from cogview_jax.evaluation.shapes_judge import judge, shares

LANGUAGES = ("en", "zh")
#: What each split's prompts are called in a report.
NAMES = {"train": "seen", "held_out": "held_out"}


def shapes_report(
    generate: Callable[[Sequence[str]], np.ndarray],
    reconstruct: Callable[[np.ndarray], np.ndarray],
    *,
    size: int,
    prompts: int,
    seed: int,
) -> dict:
    """Shares of pictures that are right, by attribute, for fresh prompts and beside the ceiling.

    Prompts alternate between English and Chinese and are drawn from `seed` alone. The ceiling is
    the judge on reconstructions of true drawings of the same scenes: no picture made of codes can
    be expected to do better.

    Args:
        generate: prompts -> uint8 pictures [n, size, size, 3].
        reconstruct: uint8 pictures [n, size, size, 3] through the image tokenizer and back.
        size: rows and columns of a picture.
        prompts: how many for seen pairs of colour and shape, and how many for held-out ones.
        seed: of the scenes.

    Returns:
        {"seen" and "held_out": {"prompts": how many, "generated", "generated_en", "generated_zh"
        and "ceiling": {attribute: share}}}.
    """
    report = {}
    for number, split in enumerate(SPLITS):
        # Training draws from [seed, split, index]; a third number of another kind keeps apart.
        rng = np.random.default_rng([seed, number, 0, 1])
        scenes = [sample_scene(rng, held_out=split == "held_out") for _ in range(prompts)]
        languages = [LANGUAGES[i % len(LANGUAGES)] for i in range(prompts)]
        texts = [caption(scene, tongue) for scene, tongue in zip(scenes, languages, strict=True)]
        verdicts = _verdicts(generate(texts), scenes)
        true = np.stack([draw(scene, size, rng) for scene in scenes])
        report[NAMES[split]] = {
            "prompts": prompts,
            "generated": shares(verdicts),
            **{
                f"generated_{tongue}": shares(
                    [v for v, said in zip(verdicts, languages, strict=True) if said == tongue]
                )
                for tongue in LANGUAGES
            },
            "ceiling": shares(_verdicts(reconstruct(true), scenes)),
        }
    return report


def table(report: dict) -> str:
    """A report of `shapes_report` as lines for people."""
    rows = [
        (f"{split} {name}".replace("_", " "), row)
        for split in NAMES.values()
        for name, row in report[split].items()
        if name != "prompts"
    ]
    attributes = list(rows[0][1])
    lines = [f"{'':24}" + "".join(f"{name:>12}" for name in attributes)]
    lines += [
        f"{name:24}" + "".join(f"{row[attribute]:12.3f}" for attribute in attributes)
        for name, row in rows
    ]
    return "\n".join(lines)


def _verdicts(pictures: np.ndarray, scenes: Sequence[Scene]) -> list:
    return [judge(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
