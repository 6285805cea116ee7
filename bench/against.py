"""Runs benchmarks of this tree and of an earlier commit in turns, and prints the ratios.

    .venv/bin/python -m bench.against REV train_step decode [--turns 3]
    make bench AGAINST=REV

Each turn starts the benchmark once in either tree, in an order that changes from turn to turn, so
that other work on the machine slows both alike. What both write to bench/results/NAME.json under
the same name, and is a number, is compared: the median of each side, and the median and the range
of the ratio over turns. The commit is checked out in a temporary folder, and runs in the same
environment. It writes bench/results/against_NAME.json.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cogview_jax.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("bench", "results")


def main() -> None:
    """Measures and prints a table of each benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="a commit, such as HEAD~5")
    parser.add_argument("names", nargs="+", metavar="NAME", help="of bench/NAME.py")
    parser.add_argument("--turns", type=int, default=3)
    flags = parser.parse_args()
    if flags.turns < 1:
        parser.error(f"--turns {flags.turns}: expected at least 1")
    with checked_out(flags.revision) as before:
        for name in flags.names:
            compare(name, flags.revision, before, flags.turns)


@contextlib.contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A temporary folder with the tree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        git("worktree", "add", "--quiet", "--detach", str(tree), revision)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def compare(name: str, revision: str, before: Path, turns: int) -> None:
    """Runs one benchmark in both trees, prints its table and writes its file."""
    found: dict[Path, list[dict[str, float]]] = {before: [], ROOT: []}
    for turn in range(turns):
        for tree in (before, ROOT) if turn % 2 else (ROOT, before):
            found[tree].append(dict(numbers(measured(name, tree))))
            side = "this tree" if tree == ROOT else revision
            print(f"{name}: turn {turn + 1} of {turns}, {side}", file=sys.stderr, flush=True)
    table = compared(found[before], found[ROOT])
    print(f"{name:40} {revision[:12]:>14} {'this tree':>14}   ratio (range over {turns} turns)")
    for key, row in table.items():
        print(
            f"{key:40} {row['before']:14.5g} {row['now']:14.5g}   {row['ratio']:.3f}"
            f" ({row['least']:.3f} to {row['most']:.3f})"
        )
    write_json(ROOT / RESULTS / f"against_{name}.json", {"revision": revision, **table})


def measured(name: str, tree: Path) -> Any:
    """What a benchmark of a tree writes."""
    file = tree / RESULTS / f"{name}.json"
    file.unlink(missing_ok=True)
    # The package of the tree, not the installed one.
    environment = os.environ | {"PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", f"bench.{name}"]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode or not file.exists():
        tail = "\n".join(done.stderr.splitlines()[-5:])
        sys.exit(f"bench.{name} in {tree}: status {done.returncode}, no {file.name}\n{tail}")
    return json.loads(file.read_text())


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in what was read from JSON, each with the names on its way."""
    inner = value.items() if isinstance(value, Mapping) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, below in inner:
        yield from numbers(below, f"{name}.{key}" if name else str(key))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)


def compared(
    before: list[dict[str, float]], now: list[dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Medians of both sides, and of their ratios, of what all turns of both have."""
    common = [key for key in now[0] if all(key in turn for turn in [*before, *now])]
    table = {}
    for key in common:
        pairs = [(was[key], is_[key]) for was, is_ in zip(before, now, strict=True)]
        if all(was == is_ for was, is_ in pairs) or any(was == 0 for was, _ in pairs):
            continue  # sizes, and what has no ratio
        ratios = [is_ / was for was, is_ in pairs]
        table[key] = {
            "before": statistics.median(was for was, _ in pairs),
            "now": statistics.median(is_ for _, is_ in pairs),
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
        }
    return table


def git(*arguments: str) -> None:
    """Runs git in this tree."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.strip()}")


if __name__ == "__main__":
    main()
