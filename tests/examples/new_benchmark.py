"""PSNR of new drawings after the image tokenizer has encoded and decoded them, in dB."""

import numpy as np

from cogview_jax.evaluation.benchmark import Options, Report
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.progress import Progress
from cogview_jax.shapes.fresh import fresh_scenes


def run(model: CogView, options: Options) -> Report:
    """The PSNR of each split, 10 log10(255^2 / MSE), of `options.count` drawings."""
    model.need("codec")
    size, report = model.codec.config.image_size, {}
    with Progress(2 * options.count, "psnr", unit="image") as progress:
        for split in fresh_scenes(options.count, options.seed):
            images = split.drawings(size)
            decoded = model.decode(model.encode(images))
            mse = np.mean((decoded.astype(np.float64) - images) ** 2)
            psnr = float(10 * np.log10(255**2 / mse))
            report[split.name] = {"drawings": options.count, "psnr": psnr}
            progress.update(options.count)
    return report
