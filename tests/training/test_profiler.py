"""The trace of a window of steps, and of no others."""

import jax
import jax.numpy as jnp
import pytest

from cogview_jax.runtime.errors import InputError
from cogview_jax.training.profiler import ProfileConfig, ProfilerWindow

NAMES = ("first", "second", "third", "fourth")


def traced(folder):
    """Names of the annotated calls in the trace files of a folder."""
    data = b"".join(path.read_bytes() for path in folder.rglob("*.xplane.pb"))
    return [name for name in NAMES if f"call_{name}".encode() in data]


@pytest.mark.parametrize(
    ("config", "start", "expected"),
    [
        (ProfileConfig(after=1, steps=2), 0, ["second", "third"]),
        (ProfileConfig(after=3, steps=9), 0, ["fourth"]),  # the run ends first
        (ProfileConfig(after=1, steps=0), 0, []),
        (ProfileConfig(after=0, steps=2), 1, []),  # a resumed run is past it
    ],
)
def test_the_steps_of_the_window_are_traced(config, start, expected, tmp_path):
    square = jax.jit(lambda x: x @ x)
    x = square(jnp.ones((64, 64)))
    window = ProfilerWindow(config, tmp_path / "profile")
    for done in range(start, 4):
        window.before(done)
        with jax.profiler.TraceAnnotation(f"call_{NAMES[done]}"):
            y = square(x)
        window.after(done + 1, y)
    window.close()
    assert traced(tmp_path / "profile") == expected


def test_no_negative_window():
    with pytest.raises(InputError, match="after = -1: expected at least 0"):
        ProfileConfig(after=-1, steps=2)
