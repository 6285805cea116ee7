"""From the command `cogview sample` to its images: where the first seconds go.

  python -m bench.first_seconds --bundle emoji --prompt "a blue butterfly in flat style" --rounds 7

Each round runs the command twice, as a user does, in a home of its own: once with an empty cache of
compiled programs (cold), once with what the first has kept (warm). Prints the medians over the
rounds, by the clock and in CPU seconds (user and system), of the whole and of each part, and how
many programs were compiled or read from the cache. With --against DIR, another checkout of this
project takes turns with this one, and the ratio of the whole is printed too. It writes the whole
to bench/results/first_seconds.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cogview_jax.runtime.files import write_json

HERE = Path(__file__).resolve().parents[1]
RESULT = HERE / "bench" / "results" / "first_seconds.json"
#: Runs in the process that is measured: notes when each part has ended. Parts overlap where
#: programs are compiled while others run; a moment counts for the part that the job waits for.
PROGRAM = """
import json, sys, time
begun = float(sys.argv.pop(1))
marks, programs = {}, []

def mark(name):
    marks.setdefault(name, (time.time(), time.process_time()))

mark("python")

def timed(owner, name, label):
    before = getattr(owner, name)
    def after(*args, **kwargs):
        found = before(*args, **kwargs)
        mark(label)
        return found
    setattr(owner, name, after)

import jax
from cogview_jax.commands import sample
from cogview_jax.commands import sample_images
from cogview_jax.commands.resumable_output import ResumableOutput
from cogview_jax.commands.sample_inputs import JobOptions
from cogview_jax.pipeline.parts import Parts
from cogview_jax.sampling import engine
from cogview_jax.runtime.command_line import run
mark("imports")

def heard(event, seconds, **about):
    if event == "/jax/core/compile/backend_compile_duration":
        programs.append((about.get("fun_name"), seconds))

hits = []
jax.monitoring.register_event_duration_secs_listener(heard)
jax.monitoring.register_event_listener(
    lambda event, **about: hits.append(event) if event.endswith("/cache_hits") else None)
timed(JobOptions, "load", "reading the bundle")
timed(Parts, "decode", "decoding")
timed(engine, "to_host", "compiling and sampling")
timed(ResumableOutput, "remove", "writing")
try:
    run(sample)
finally:
    ends = [(begun, 0), *marks.values()]
    parts = {name: [new - old for new, old in zip(end, before)]
             for name, before, end in zip(marks, ends, ends[1:])}
    print(json.dumps({"parts": parts, "programs": len(programs), "hits": len(hits),
                      "compiling": sum(seconds for _, seconds in programs)}))
"""


def measured(checkout: Path, home: Path, flags: list[str], watched: bool) -> dict[str, Any]:
    """One run of the command: its seconds, CPU seconds and, if it is `watched`, its parts."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "HOME": str(home)}
    environment = {
        name: value
        for name, value in environment.items()
        if not name.startswith(("JAX_COMPILATION", "JAX_PERSISTENT", "XDG_CACHE"))
    }
    start, before = time.time(), os.times()
    how = ["-c", PROGRAM, str(start)] if watched else ["-m", "cogview_jax.sample"]
    result = subprocess.run(
        [sys.executable, *how, *flags],
        env=environment,
        capture_output=True,
        text=True,
        cwd=home,
        check=False,
    )
    wall, after = time.time() - start, os.times()
    if result.returncode:
        raise SystemExit(result.stderr)
    cpu = sum(after[2:4]) - sum(before[2:4])
    parts = json.loads(result.stdout.splitlines()[-1]) if watched else {}
    return {"wall": wall, "cpu": cpu, **parts}


def both(checkout: Path, flags: list[str], watched: bool = False) -> dict[str, dict[str, Any]]:
    """A cold run and the warm one that follows."""
    with tempfile.TemporaryDirectory() as folder:
        place, out = Path(folder), ["--out", f"{folder}/out"]
        cold = measured(checkout, place, flags + out, watched)
        return {"cold": cold, "warm": measured(checkout, place, flags + out, watched)}


def median(runs: list[dict[str, Any]], kind: str, name: str) -> float:
    """Of what the runs of a kind have measured as `name`."""
    return statistics.median(run[kind][name] for run in runs)


def main() -> None:
    """Measures, and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="emoji")
    parser.add_argument("--prompt", default="a blue butterfly in flat style")
    parser.add_argument("--num_images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns")
    given = parser.parse_args()
    bundle = str(Path(given.bundle).resolve()) if Path(given.bundle).exists() else given.bundle
    flags = ["--bundle", bundle, "--prompt", given.prompt, "--num_images", str(given.num_images)]
    own, other, parts = [], [], []
    for _ in range(given.rounds):
        if given.against:
            other.append(both(given.against.resolve(), flags))
        own.append(both(HERE, flags))
        parts.append(both(HERE, flags, watched=True))
    result: dict[str, dict[str, float]] = {}
    for kind in ("cold", "warm"):
        result[kind] = {name: median(own, kind, name) for name in ("wall", "cpu")}
        line = f"{kind}: {median(own, kind, 'wall'):.2f} s, {median(own, kind, 'cpu'):.2f} CPU s"
        if given.against:
            was = [median(other, kind, name) for name in ("wall", "cpu")]
            shares = [
                statistics.median(
                    a[kind][name] / b[kind][name] for a, b in zip(own, other, strict=True)
                )
                for name in ("wall", "cpu")
            ]
            names = ("before", "before_cpu", "ratio", "ratio_cpu")
            result[kind] |= dict(zip(names, was + shares, strict=True))
            line += f"; before {was[0]:.2f} s, {was[1]:.2f} CPU s;"
            line += f" ratio {shares[0]:.2f} by the clock, {shares[1]:.2f} of the CPU"
        print(line)
    print("| part | cold, s | CPU s | warm, s | CPU s |\n|---|---|---|---|---|")
    for name in parts[0]["cold"]["parts"]:
        times = [
            statistics.median(run[kind]["parts"].get(name, (0, 0))[clock] for run in parts)
            for kind in ("cold", "warm")
            for clock in (0, 1)
        ]
        print(f"| {name} | " + " | ".join(f"{seconds:.2f}" for seconds in times) + " |")
    for name, what in (("programs", "programs"), ("hits", "of them from the cache")):
        numbers = [median(parts, kind, name) for kind in ("cold", "warm")]
        print(f"| {what} | {numbers[0]:.0f} | | {numbers[1]:.0f} | |")
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
