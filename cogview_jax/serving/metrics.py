"""What the server counts, in the text format of Prometheus."""

import threading
from collections.abc import Callable

#: Upper bounds of the seconds that requests are counted by.
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters, gauges that are asked for when they are read, and one histogram."""

    def __init__(self) -> None:
        """Nothing was counted yet."""
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, float]] = {}
        self._helps: dict[str, str] = {}
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self._seconds: dict[str, list[float]] = {}

    def count(self, name: str, help: str, labels: str = "", by: float = 1) -> None:
        """Adds to the counter `name`; labels are written as Prometheus writes them."""
        with self._lock:
            self._helps[name] = help
            counter = self._counts.setdefault(name, {})
            counter[labels] = counter.get(labels, 0) + by

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Names a value that is asked for whenever the metrics are read."""
        self._gauges[name] = (help, value)

    def observe(self, path: str, seconds: float) -> None:
        """Counts a request by the time it took."""
        with self._lock:
            counts = self._seconds.setdefault(path, [0.0] * (len(SECONDS) + 2))
            for i, bound in enumerate((*SECONDS, float("inf"))):
                counts[i] += seconds <= bound
            counts[-1] += seconds

    def text(self) -> str:
        """The page that Prometheus reads."""
        lines = []
        with self._lock:
            for name, counter in self._counts.items():
                lines += [f"# HELP {name} {self._helps[name]}", f"# TYPE {name} counter"]
                lines += [
                    f"{name}{{{labels}}} {value:g}" if labels else f"{name} {value:g}"
                    for labels, value in counter.items()
                ]
            if self._seconds:
                name = "cogview_request_seconds"
                lines += [f"# HELP {name} Time of a request.", f"# TYPE {name} histogram"]
            for path, counts in self._seconds.items():
                for bound, value in zip((*SECONDS, "+Inf"), counts, strict=False):
                    lines.append(f'{name}_bucket{{path="{path}",le="{bound}"}} {value:g}')
                lines.append(f'{name}_sum{{path="{path}"}} {counts[-1]:.6f}')
                lines.append(f'{name}_count{{path="{path}"}} {counts[-2]:g}')
        for name, (help, ask) in self._gauges.items():
            lines += [f"# HELP {name} {help}", f"# TYPE {name} gauge", f"{name} {ask():g}"]
        return "\n".join(lines) + "\n"
