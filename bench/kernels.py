"""Reads from a trace for which kernels a GPU needed its time."""

import collections
import glob
import re
from collections.abc import Iterator

import jax


def kernels(trace: str) -> Iterator[tuple[str, int, float]]:
    """Returns name, number and milliseconds of the kernels of a trace, the longest first."""
    (path,) = glob.glob(f"{trace}/**/*.xplane.pb", recursive=True)
    times: dict[str, list[float]] = collections.defaultdict(list)
    for plane in jax.profiler.ProfileData.from_file(path).planes:
        if "/device:" in plane.name:
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    for event in line.events:
                        name = re.sub(r"\d+", "#", event.name)
                        times[name].append(event.duration_ns / 1e6)
    for name, each in sorted(times.items(), key=lambda item: -sum(item[1])):
        yield name, len(each), sum(each)
