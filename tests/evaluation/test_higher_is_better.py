"""The numbers by which benchmarks tell better from worse: of true images they are the best."""

import numpy as np
import pytest

from cogview_jax.data import emoji_set
from cogview_jax.evaluation.benchmark import available, load_benchmark
from cogview_jax.evaluation.benchmarks import emoji, shapes, tokenizer
from cogview_jax.evaluation.reconstruction import code_use, image_values, pair_metrics
from cogview_jax.evaluation.upsampling import compared
from cogview_jax.shapes.fresh import fresh_scenes
from cogview_jax.tasks.monitor import numbers

COUNT, SIZE, SEED = 2, 32, 4


def generated(blank):
    drawings = iter([each.drawings(SIZE) for each in fresh_scenes(COUNT, SEED)])
    return shapes.generation_report(
        lambda texts: next(drawings)[:, None] * (not blank),
        lambda images: images,
        size=SIZE,
        count=COUNT,
        seed=SEED,
    )


def captioned(blank):
    texts = iter([each.texts for each in fresh_scenes(COUNT, SEED)])
    return shapes.caption_report(
        lambda images: ["" if blank else text for text in next(texts)],
        size=SIZE,
        count=COUNT,
        seed=SEED,
    )


def upsampled(blank):
    drawings = iter([each.drawings(2 * SIZE) for each in fresh_scenes(COUNT, SEED)])
    return shapes.super_resolution_report(
        lambda images, texts: next(drawings) * (not blank),
        lambda images: images,
        size=SIZE,
        count=COUNT,
        seed=SEED,
    )


def upsampled_emoji(blank):
    report = {}
    for split, name in emoji.NAMES.items():
        true = np.stack([emoji_set.tile(*pair) for pair in emoji_set.pairs(split)[:COUNT]])
        made = true * (not blank)
        report[name] = compared({"sampled": made, "enlarged": made}, true, None)
    return report


def reconstructed(blank):
    """What the benchmark makes of images and their reconstructions, without a bundle."""
    images = next(fresh_scenes(COUNT, SEED)).drawings(SIZE)
    pairs = pair_metrics(None, images, images * (not blank))
    means = image_values({name: np.asarray(each) for name, each in pairs.items()})
    codes = np.arange(8) * (not blank)
    return {name: {"mean": each.mean()} for name, each in means.items()} | code_use([codes], 8)


@pytest.mark.parametrize(
    ("benchmark", "task", "report"),
    [
        (shapes, "text_to_image", generated),
        (shapes, "caption", captioned),
        (shapes, "super_resolution", upsampled),
        (emoji, "super_resolution", upsampled_emoji),
        (tokenizer, None, reconstructed),
    ],
)
def test_true_images_are_better_than_blank_ones(benchmark, task, report):
    true, blank = (dict(numbers(report(each), "")) for each in (False, True))
    stated = benchmark.higher_is_better(task)
    for name, higher in stated.items():
        good, bad = true[f"/{name}"], blank[f"/{name}"]
        # A blank image may have the right background.
        assert good >= bad if higher else good < bad, name
    strictly = [name for name in stated if true[f"/{name}"] != blank[f"/{name}"]]
    assert len(strictly) > len(stated) / 2


def test_what_training_does_not_change_is_none_of_them():
    assert not shapes.higher_is_better(None)
    assert not shapes.higher_is_better("of another layout")
    for task in ("text_to_image", "caption", "super_resolution"):
        assert not tokenizer.higher_is_better(task)
        assert not [name for name in shapes.higher_is_better(task) if "ceiling" in name]


def test_every_benchmark_that_training_can_run_says_so():
    for name in available():
        benchmark = load_benchmark(name)
        if getattr(benchmark, "NEEDS_BUNDLE", True) and not getattr(benchmark, "NEEDS_FLAGS", ()):
            tasks = (None, "text_to_image", "caption", "super_resolution")
            assert any(benchmark.higher_is_better(task) for task in tasks), name
