"""Evaluating a bundle into a JSON report."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cogview_jax.evaluation.shapes_report import shapes_report, table
from cogview_jax.pipeline import load
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.files import sha256_file, write_json
from cogview_jax.runtime.progress import Progress
from cogview_jax.sampling.filters import SamplingConfig


def shapes(
    bundle: str,
    out: str,
    *,
    prompts: int,
    seed: int,
    sampling: SamplingConfig,
    batch_size: int,
    precision: str = "float32",
) -> None:
    """Writes to the file `out` how often the bundle draws what captions of shapes say."""
    if prompts < 2:
        raise InputError(f"--num_prompts {prompts}: expected at least 2, one a language")
    model = load(bundle, dtype=precision)
    if model.codec_part is None or model.transformer_part is None:
        raise InputError(f"bundle {bundle} needs a transformer and a codec to be evaluated")
    with Progress(2 * prompts, "evaluate", unit="image") as progress:

        def generate(texts: Sequence[str]) -> np.ndarray:
            codes = model.generate_codes(
                texts, 1, seed, sampling=sampling, batch_size=batch_size, progress=progress.update
            )
            return model.decode(codes[:, 0])

        report = shapes_report(
            generate,
            lambda pictures: model.decode(model.encode(pictures)),
            size=model.codec_part.config.image_size,
            prompts=prompts,
            seed=seed,
        )
    settings = {
        "bundle": sha256_file(Path(bundle) / "bundle.json"),
        "seed": seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
    }
    write_json(out, {"benchmark": "shapes", "settings": settings} | report)
    print(table(report))
    print(f"report in {out}", file=sys.stderr)
