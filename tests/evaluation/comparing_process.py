"""Compares two folders as one of several processes, by a small network.

python comparing_process.py REAL GENERATED WEIGHTS OUT [SECONDS]

SECONDS pass with each batch of rows, so that somebody may be killed meanwhile.
"""

import sys
import time

import jax
import pytest

from cogview_jax.evaluation.benchmark import ImageOptions, Options, load_benchmark
from cogview_jax.evaluation.features import FeatureExtractor
from cogview_jax.evaluation.report import evaluate
from tiny_features import offer

if __name__ == "__main__":
    real, generated, weights, out, *slowly = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        offer(patch)
        given = FeatureExtractor.__call__

        def slow(self, images):
            for found in given(self, images):
                time.sleep(float(slowly[0]))
                yield found

        if slowly:
            patch.setattr(FeatureExtractor, "__call__", slow)
        asked = ImageOptions(
            real=real, generated=generated, features={"tiny": weights}, blur=(0, 1)
        )
        evaluate(load_benchmark("fid"), None, out, Options(batch_size=4, images=asked))
