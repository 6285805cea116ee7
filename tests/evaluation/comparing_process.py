"""Compares two folders as one of several processes, by a small network.

python comparing_process.py REAL GENERATED WEIGHTS OUT
"""

import os
import sys

import jax
import pytest

from cogview_jax.evaluation.benchmark import ImageOptions, Options, load_benchmark
from cogview_jax.evaluation.report import evaluate
from cogview_jax.runtime.processes import Timeouts, find_process_info, start
from tiny_features import offer

if __name__ == "__main__":
    real, generated, weights, out = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    start(find_process_info("", None, None, os.environ), Timeouts())
    with pytest.MonkeyPatch.context() as patch:
        offer(patch)
        asked = ImageOptions(
            real=real, generated=generated, features={"tiny": weights}, blur=(0, 1)
        )
        evaluate(load_benchmark("fid"), None, out, Options(batch_size=4, images=asked))
