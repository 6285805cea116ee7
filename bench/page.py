"""One page of speeds: this tree, an earlier commit, a peer, and the limit of the machine.

    python -m bench.page [--against REV] [--peer_python PATH] [--rounds N]
    make bench [AGAINST=REV] [PEER=PATH]

A row is a training step, a token for each of 1, 4 and 16 rows, or the way from the command `cogview
sample` to its images. Each is measured by a benchmark of its own, which says how, and which takes
turns with the other side: `bench.peers` with the peer, `bench.against` and `bench.first_seconds`
with the commit. So each ratio is of pairs, and a row has what was measured in the same minutes
alone. A ratio above 1 says that the other side takes longer. What is not asked for is left out.
The page is also written to bench/results/page.md.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.against import checked_out

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
HEAD = ("", "ours", "share of the limit", "before", "before / ours", "peer", "peer / ours")
#: Rows of `bench.decode` with a context of 64, the first that it measures.
BATCHES = (1, 4, 16)


def main() -> None:
    """Runs the benchmarks, prints the page, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="REV", help="a commit, such as HEAD~5")
    parser.add_argument("--peer_python", metavar="PATH", help="an interpreter that has the peers")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (%(default)s)")
    flags = parser.parse_args()
    if flags.rounds < 1:
        parser.error(f"--rounds {flags.rounds}: expected at least 1")
    peer = ["--peer_python", flags.peer_python] if flags.peer_python else []
    rounds = ["--rounds", str(flags.rounds)]
    for what in ("train", "decode"):
        run("bench.peers", what, *peer, *rounds)
    with contextlib.ExitStack() as stack:
        before = []
        if flags.against:
            turns = ["--turns", str(flags.rounds)]
            run("bench.against", flags.against, "train_step", "decode", *turns)
            before = ["--against", str(stack.enter_context(checked_out(flags.against)))]
        run("bench.first_seconds", *before, *rounds)
    found = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    page = table(rows(found, bool(flags.against)))
    (RESULTS / "page.md").write_text(page)
    print(page)


def run(name: str, *arguments: str) -> None:
    """Runs a benchmark; what it prints goes to standard error, and the page alone to the output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", name, *arguments]
    status = subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr).returncode
    if status:
        sys.exit(f"{name} {' '.join(arguments)}: status {status}")


def rows(found: Mapping[str, Any], against: bool) -> Iterator[Sequence[str]]:
    """The cells of each row.

    Args:
        found: what the benchmarks have written, by name.
        against: whether the commit was measured; a file of it may be of an earlier run.
    """
    steps = found["peers_train"]["rows"]
    # Without a peer our step is the same beside each form of its.
    for row in steps if steps[0].get("peer") else steps[:1]:
        form = f", peer {row['name']}" if row.get("peer") else ""
        yield cells(f"training step with AdamW{form}", row)
    for row in found["peers_decode"]["rows"]:
        precision, batch = row["name"].split()
        yield cells(f"a token for each of {batch} rows, {precision}", row)
    if against:
        # A commit whose benchmark writes other names has nothing to be compared with.
        if both := found["against_train_step"].get("step_seconds"):
            yield pair("gradients of a training step", both)
        for number, batch in enumerate(BATCHES):
            if both := found["against_decode"].get(f"rows.{number}.seconds"):
                yield pair(f"a token for each of {batch} rows, float32", both)
    for kind, row in found["first_seconds"].items():
        was = [seconds(row["before"]), f"{1 / row['ratio']:.2f}"] if against else ["", ""]
        yield (f"`cogview sample`, {kind}", seconds(row["wall"]), "", *was, "", "")


def cells(name: str, row: Mapping[str, Any]) -> Sequence[str]:
    """The cells of a row of `bench.peers`."""
    ours, peer = row["ours"], row.get("peer")
    other = [seconds(peer["seconds"]), f"{row['ratio']['seconds']:.2f}"] if peer else ["", ""]
    return (name, seconds(ours["seconds"]), f"{ours['seconds_share']:.0%}", "", "", *other)


def pair(name: str, row: Mapping[str, float]) -> Sequence[str]:
    """The cells of a row of `bench.against`."""
    before = (seconds(row["before"]), f"{1 / row['ratio']:.2f}")
    return (name, seconds(row["now"]), "", *before, "", "")


def seconds(value: float) -> str:
    """A time for people."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def table(found: Iterator[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *found]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
