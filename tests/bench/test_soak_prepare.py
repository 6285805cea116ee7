"""The soak of prepare in its smallest part: one bit is flipped, and one record is bad."""

import numpy as np

from bench.soak_prepare import make_tars
from cogview_jax.data.records import BadRecord
from cogview_jax.data.sources.webdataset import WebDataset


def test_one_record_of_the_tars_is_damaged(tmp_path):
    damaged = make_tars(tmp_path / "tars", 60, np.random.default_rng(0))
    source = WebDataset(path=str(tmp_path / "tars" / "*.tar")).open()
    bad = []
    for i in range(len(source)):
        try:
            assert source[i].image.shape == (16, 16, 3)
        except BadRecord as error:
            bad.append(error.key)
    assert len(source) == 60
    assert bad == [damaged]
