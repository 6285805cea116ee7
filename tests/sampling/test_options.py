"""How sampling is asked for: whole, or in part with the rest left to the bundle."""

import re

import numpy as np
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions, SamplingSettings


def test_open_settings_are_those_that_are_usual():
    usual = SamplingConfig(temperature=0.7, top_k=50, top_p=0.9, guidance=3.0)
    assert SamplingSettings().over(usual) == usual
    assert SamplingSettings().given == {}
    some = SamplingSettings(temperature=0.0, guidance=1.0)  # neither is open: 0 and 1 were given
    assert some.given == {"temperature": 0.0, "guidance": 1.0}
    assert some.over(usual) == SamplingConfig(0.0, 50, 0.9, 1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": -1.0}, "temperature = -1.0: expected 0 (greedy) or above"),
        ({"temperature": float("nan")}, "temperature = nan: expected 0 (greedy) or above"),
        ({"top_k": -2}, "top_k = -2: expected 0 (all tokens) or above"),
        ({"top_p": 0.0}, "top_p = 0.0: expected above 0 and at most 1 (all tokens)"),
        ({"guidance": -1.0}, "guidance = -1.0: expected 0 (no text) to 1000000"),
        ({"top_k": 0.5}, "top_k = 0.5: expected a whole number"),
        ({"parallel_window": 2.0}, "parallel_window = 2.0: expected a whole number"),
        ({"temperature": "1"}, "temperature = '1': expected a number"),
    ],
)
@pytest.mark.parametrize("kind", [SamplingConfig, SamplingSettings])
def test_other_values_are_refused(kind, given, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        kind(**given)


@pytest.mark.parametrize("batch_size", ["8", 2.5])
def test_a_batch_size_is_a_whole_number(batch_size):
    assert SamplingOptions(batch_size=np.int64(8)).batch_size == 8
    with pytest.raises(InputError, match=f"^batch_size {batch_size!r}: expected a whole number$"):
        SamplingOptions(batch_size=batch_size)
