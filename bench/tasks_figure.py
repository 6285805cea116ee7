"""Draws a figure with the results of each task on captioned shapes, for `make demo-tasks`.

  python -m bench.tasks_figure --out runs/demo/tasks.png

The figure shows the candidates of a prompt in the order of their CapLoss, captions of true
drawings, drawings whose lower half is sampled again, and upsampled drawings beside resampled ones.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import cogview_jax
from cogview_jax.evaluation.contact_sheet import caption_grid, titled
from cogview_jax.evaluation.upsampling import RESAMPLING, resampled
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.generation import GREY
from cogview_jax.runtime.files import atomic_path
from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.shapes.scenes import caption, drawing

COLUMNS = 8
PROMPTS = (
    "a large purple heart at the top left on a white background",
    "三个蓝色星形，灰色背景",
)
#: A row has so many drawings of the held-out split, whose pairs of colour and shape are not in
#: the training split.
DRAWINGS = range(COLUMNS)


def candidates(model: CogView, scorer: CogView) -> Image.Image:
    """Returns eight images for each prompt, with the least CapLoss first."""
    images, captions = [], []
    for prompt, sampled in zip(PROMPTS, model.generate(PROMPTS, COLUMNS), strict=True):
        pixels = np.stack([np.asarray(image) for image in sampled])
        scores = scorer.score(pixels, [prompt] * COLUMNS)
        order = np.argsort(scores, kind="stable")
        images += list(pixels[order])
        captions += [f"CapLoss {scores[i]:.3f}: {prompt}" for i in order]
    return caption_grid(images, captions, COLUMNS)


def described(captioner: CogView, small: np.ndarray) -> Image.Image:
    """Returns drawings with the captions that the caption model samples."""
    return caption_grid(list(small), captioner.caption(small), COLUMNS)


def completed(model: CogView, small: np.ndarray, texts: list[str]) -> Image.Image:
    """Returns the upper half of every drawing, and the whole image that completes it."""
    rows = model.codec.config.grid // 2
    given = small.copy()
    given[:, rows * model.codec.config.downsampling :] = GREY
    requests = [SamplingRequest(text) for text in texts]
    codes = model.generation.complete_codes(small, rows, requests, range(len(small)))
    whole = model.decode(np.concatenate(list(codes)))
    return caption_grid([*given, *whole], [*["given"] * len(given), *texts], COLUMNS)


def upsampled(
    upsampler: CogView, small: np.ndarray, large: np.ndarray, texts: list[str]
) -> Image.Image:
    """Returns drawings upsampled by resampling and by the model, and the true drawings."""
    ways = {
        f"given, {small.shape[1]} px": small,
        "bilinear": resampled(small, RESAMPLING["bilinear"]),
        "the codes alone": upsampler.super_resolve(small, texts, back_projection=0),
        "back-projected": upsampler.super_resolve(small, texts),
        "true drawing": large,
    }
    rows = zip(*ways.values(), strict=True)
    images = [np.asarray(image) for row in rows for image in row]
    return caption_grid(images, [*ways] * len(small), len(ways))


def main() -> None:
    """Loads three bundles and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="runs/demo/bundle")
    parser.add_argument("--caption", default="runs/demo/caption/bundle")
    parser.add_argument("--superres", default="runs/demo/superres/bundle")
    parser.add_argument("--out", default="runs/demo/tasks.png")
    options = parser.parse_args()
    paths = (options.bundle, options.caption, options.superres)
    model, captioner, upsampler = (cogview_jax.load(path) for path in paths)
    size = model.codec.config.image_size
    small = np.stack([drawing(0, "held_out", i, size)[1] for i in DRAWINGS])
    large = np.stack([drawing(0, "held_out", i, 2 * size)[1] for i in DRAWINGS])
    texts = [caption(drawing(0, "held_out", i, size)[0], "zh" if i % 2 else "en") for i in DRAWINGS]
    sheets = {
        "Candidates in the order of their CapLoss (lower is better)": candidates(model, captioner),
        "Captions of true drawings": described(captioner, small),
        "Completed from the upper half": completed(model, small, texts),
        "Super-resolution": upsampled(upsampler, small[:4], large[:4], texts[:4]),
    }
    with atomic_path(Path(options.out)) as temporary:
        titled(sheets).save(temporary)
    print(f"figure in {options.out}")


if __name__ == "__main__":
    main()
