"""Measures the peak memory and the time of KID and FID of many features.

    .venv/bin/python -m bench.metric_memory [--images 50000] [--dimensions 2048] [--subsets 100]

Each metric has a process of its own, which makes two sets of random float32 features, as a network
would have left them in memory, and compares them. The command prints a table, writes
bench/results/metric_memory.json, and fails if KID takes 2 GB or more.

The peak is that of getrusage: libraries and both sets of features included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "metric_memory.json"
METRICS = ("features_only", "kid", "fid")
#: Bytes.
LIMIT, GB = 2 * 10**9, 10**9


def main() -> None:
    """Measures each metric in a process of its own; with "measure", measures one."""
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measured(sys.argv[2], *map(int, sys.argv[3:]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--subsets", type=int, default=100)
    flags = parser.parse_args()
    sizes = [str(size) for size in (flags.images, flags.dimensions, flags.subsets)]
    rows = {}
    print(f"two sets of {flags.images:,} x {flags.dimensions:,} features in float32")
    print(f"  {'metric':16}{'peak, GB':>10}{'seconds':>10}")
    for metric in METRICS:
        command = [sys.executable, "-m", "bench.metric_memory", "measure", metric, *sizes]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        row = rows[metric] = json.loads(done.stdout)
        print(f"  {metric:16}{row['peak'] / GB:10.2f}{row['seconds']:10.1f}", flush=True)
    from cogview_jax.runtime.files import write_json

    write_json(RESULT, vars(flags) | {"cores": os.cpu_count(), "metrics": rows})
    if rows["kid"]["peak"] >= LIMIT:
        sys.exit(f"KID: {rows['kid']['peak'] / GB:.2f} GB, expected below {LIMIT / GB:.0f}")


def measured(metric: str, images: int, dimensions: int, subsets: int) -> dict:
    """Returns the peak bytes of this process and the seconds of the metric alone."""
    import numpy as np

    from cogview_jax.evaluation.metrics.frechet import frechet_distance
    from cogview_jax.evaluation.metrics.kernel_distance import kernel_distance
    from cogview_jax.evaluation.metrics.moments import Moments

    rng = np.random.default_rng(0)
    sets = [rng.standard_normal((images, dimensions), np.float32) for _ in range(2)]
    start = time.perf_counter()
    if metric == "kid":
        kernel_distance(*sets, subsets=subsets)
    elif metric == "fid":
        frechet_distance(*map(Moments.of, sets))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak, "seconds": seconds}


if __name__ == "__main__":
    main()
