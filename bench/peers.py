"""Compares decoding with CTranslate2, and a training step with transformers, in turns.

    python -m bench.peers decode [--peer_python PATH] [--precisions float32,int8]
        [--batches 1,4,16] [--context N] [--top_k K]
    python -m bench.peers train [--peer_python PATH] [--forms eager,compiled]

The peers are GPT-2 models of the size of the tutorial model with random weights, in processes of
an interpreter that has their packages:

    python -m venv peer && peer/bin/pip install torch transformers ctranslate2

Decoding has a head for 8,192 ids on both sides. The time for the prompt is left out. The training
step has one row of 1,089 tokens, a table of 58,240 ids, float32, clipping and AdamW.

Both sides use as many threads as there are cores (fewer under `taskset`). They are measured one
after the other, round by round, each right after the peak of its own library: reading a matrix of
512 MB for decoding, a product of 2,048 x 2,048 for training. The limit is the time that the bytes
or the FLOPs of a step of ours take at the highest peak that either side reached. Ratios are medians
over the rounds.
On a machine that others use, processor time says more than the clock. The command prints a table
and writes bench/results/peers_decode.json or peers_train.json.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.contender import answer, started
from bench.gpt2_contenders import Sizes, positions
from cogview_jax.runtime.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
PEERS = {"decode": "ctranslate2", "train": "transformers"}
CHOICES = {"precisions": ("float32", "int8"), "forms": ("eager", "compiled")}
SMALL = Sizes(
    layers=1,
    width=64,
    heads=1,
    codes=128,
    text=101,
    text_length=6,
    grid=8,
    context=8,
    count=4,
    product=64,
    read=2**16,
)
#: Seconds before a turn, after which the threads of the other side no longer wait for work busily.
PAUSE = 0.5

#: What one side's process answered, round by round.
Answers = list[dict[str, Any]]


def main() -> None:
    """Measures, prints the table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=PEERS)
    parser.add_argument("--peer_python", metavar="PATH", help="an interpreter that has the peer")
    parser.add_argument("--precisions", default="float32,int8", help="to decode (%(default)s)")
    parser.add_argument("--batches", default="1,4,16", help="rows to decode (%(default)s)")
    text = "of transformers' step (%(default)s)"
    parser.add_argument("--forms", default="eager,compiled", help=text)
    parser.add_argument("--context", type=int, default=64, help="tokens before (%(default)s)")
    text = "sample among so many ids; 0, the default, takes the likeliest"
    parser.add_argument("--top_k", type=int, default=0, help=text)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (%(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, help="where to (bench/results/peers_WHAT.json)")
    flags = parser.parse_args()
    if flags.rounds < 1:
        parser.error(f"--rounds {flags.rounds}: expected at least 1")
    if not 1 <= flags.context <= (most := positions(Sizes()) - Sizes.count):
        parser.error(f"--context {flags.context}: expected 1 to {most}")
    if flags.top_k < 0:
        parser.error(f"--top_k {flags.top_k}: expected 0 or more")
    if flags.peer_python and not Path(flags.peer_python).is_file():
        parser.error(f"--peer_python {flags.peer_python}: expected the path of an interpreter")
    for name, choices in CHOICES.items():
        given = getattr(flags, name)
        if set(given.split(",")) - set(choices):
            parser.error(f"--{name} {given}: choose from {', '.join(choices)}, joined by a comma")
    batches = flags.batches.split(",")
    if not all(rows.isdecimal() and int(rows) > 0 for rows in batches):
        parser.error(f"--batches {flags.batches}: expected numbers of rows, such as 1,4,16")
    # Pairs of a line for our side and one for the peer.
    pairs = [("step", form) for form in flags.forms.split(",")]
    if flags.what == "decode":
        lines = itertools.product(flags.precisions.split(","), batches)
        pairs = [(" ".join(line), " ".join(line)) for line in lines]
    base = SMALL if flags.small else Sizes(context=flags.context)
    sizes = asdict(base) | {"threads": cores(), "top_k": flags.top_k}
    out = flags.out or RESULTS / f"peers_{flags.what}.json"
    facts, rows = {}, []
    for facts, found in measured(flags.what, flags.peer_python, sizes, pairs, flags.rounds):
        rows = [
            {"name": pair[1], **compared(*both)} for pair, both in zip(pairs, found, strict=True)
        ]
        # After every round, so that one may stop a long run.
        write_json(out, {"sizes": sizes, "facts": facts, "rows": rows})
    print(f"{'; '.join(fact['versions'] for fact in facts.values())}; {sizes['threads']} threads")
    print(f"{'':18}{'':12}{HEADER}")
    for row in rows:
        for side in filter(row.get, ("ours", "peer")):
            print(f"{row['name']:18}{side:12}{columns(row[side], row['ratio'])}", flush=True)


def cores() -> int:
    """Returns how many cores this process and those that it starts may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def measured(
    what: str,
    peer_python: str | None,
    sizes: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    rounds: int,
) -> Iterator[tuple[dict[str, dict[str, Any]], list[tuple[Answers, Answers]]]]:
    """Measures both sides in turns, after a round that is not counted.

    Args:
        what: a name in `PEERS`.
        peer_python: the interpreter of the peer; None measures our side alone.
        sizes: the fields of `Sizes`.
        pairs: what is measured of our side and of the peer; see `gpt2_contenders`.
        rounds: how often.

    Yields:
        After each round the facts of each side, and the answers of both to each pair so far.
    """
    commands = {"ours": (sys.executable, f"cogview-{what}")}
    if peer_python:
        commands["peer"] = (peer_python, PEERS[what])
    found: list[tuple[Answers, Answers]] = [([], []) for _ in pairs]
    with contextlib.ExitStack() as stack:
        running = {
            side: stack.enter_context(
                started([python, "-m", "bench.gpt2_contenders", name, json.dumps(sizes)], ROOT)
            )
            for side, (python, name) in commands.items()
        }
        # That of the peer comes first, for it may lack packages.
        facts = {side: answer(running[side]) for side in reversed(running)}
        for turn in range(rounds + 1):
            for pair, answers in zip(pairs, found, strict=True):
                sides = list(zip(("ours", "peer"), pair, answers, strict=True))
                for side, line, own in sides if turn % 2 else sides[::-1]:
                    if side in running:
                        time.sleep(PAUSE)
                        reply = answer(running[side], line)
                        milliseconds = [f"{reply[k] * 1e3:.1f}" for k in ("seconds", "processor")]
                        told = f"round {turn} of {rounds}, {side}, {line}: {milliseconds} ms"
                        print(told, file=sys.stderr, flush=True)
                        if turn:
                            own.append(reply)
            if turn:
                yield facts, found


def compared(ours: Answers, peer: Answers) -> dict[str, Any]:
    """Returns what follows from the answers of both sides to one pair, round by round.

    Shares are those of the limit: the work of our step at the highest peak of both sides. Ratios
    are how many times the time of ours the peer takes, the median over the rounds.
    """
    row: dict[str, Any] = {"ratio": {}}
    for clock, peak in (("seconds", "peak"), ("processor", "processor_peak")):
        limit = ours[0]["work"] / max(each[peak] for each in ours + peer)
        for side, answers in (("ours", ours), ("peer", peer)):
            if answers:
                values = [each[clock] for each in answers]
                own = row.setdefault(side, {"answers": answers})
                own |= {clock: min(values), f"{clock}_share": limit / min(values)}
                own[peak] = max(each[peak] for each in answers)
        if peer:
            both = zip(peer, ours, strict=True)
            row["ratio"][clock] = statistics.median(a[clock] / b[clock] for a, b in both)
    return row


#: Of `columns`.
HEADER = (
    "   clock, share | processor, share | own peak: clock, processor | "
    "peer / ours: clock, processor"
)


def columns(own: Mapping[str, Any], ratio: Mapping[str, float]) -> str:
    """The line of one side: milliseconds, 1e9 FLOPs or bytes a second, and the ratios."""
    return (
        f"{own['seconds'] * 1e3:8.1f} {own['seconds_share']:7.0%} |"
        f" {own['processor'] * 1e3:8.1f} {own['processor_share']:7.0%} |"
        f" {own['peak'] / 1e9:15.1f} {own['processor_peak'] / 1e9:11.1f} |"
        f"  {'  '.join(f'{value:.2f}' for value in ratio.values())}"
    )


if __name__ == "__main__":
    main()
