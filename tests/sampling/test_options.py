"""How sampling is asked for: whole, or in part with the rest left to the bundle."""

import re

import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.options import SamplingConfig, SamplingSettings


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
    ],
)
@pytest.mark.parametrize("kind", [SamplingConfig, SamplingSettings])
def test_values_out_of_range_are_refused(kind, given, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        kind(**given)
