"""Times a training step of the image tokenizers: forward and backward passes in float32.

    python -m bench.codec_step [--peer PYTHON] [--against FOLDER] [--trace] [--small]

The VQGAN gets 8 images of 128 pixels, mean squared error and the losses of a learned codebook.
`--peer PYTHON` compares it with the VQModel of diffusers, with the same sizes and as many
parameters, run eagerly by a Python interpreter that has torch and diffusers:

    python -m venv peer && peer/bin/pip install torch diffusers

The plain VQ-VAE of configs/codec_vqvae.py gets one image of 256 pixels. `--against FOLDER` compares
both with those of another checkout of this project, such as `git worktree add FOLDER COMMIT`.

Every contender is a process of its own. They step in turn, each right after a product of two
matrices of 2,048 x 2,048, whose rate is the peak. Contenders count the same FLOPs of a model,
whatever they compute. The command prints a table and, with `--trace`, the longest operations of
our VQGAN, and writes bench/results/codec_step.json.
"""

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.contender import answer, started

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "codec_step.json"
CONTENDERS = ROOT / "bench" / "codec_contenders.py"


def main() -> None:
    """Measures, prints the table, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has diffusers")
    parser.add_argument("--against", metavar="FOLDER", help="another checkout of this project")
    parser.add_argument("--only", choices=("vqgan", "vqvae"), help="one of the two models")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each (%(default)s)")
    parser.add_argument("--trace", action="store_true", help="list the longest operations")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULT, help="where to (%(default)s)")
    flags = parser.parse_args()
    print(f"{'':30}{'parameters':>11}{'ms a step':>11}{'spread':>16}{'ratio':>7}{'of peak':>9}")
    rows = []
    for model in ("vqgan", "vqvae"):
        if flags.only in (None, model):
            contenders = {"this build": (sys.executable, model, ROOT)}
            if flags.against:
                contenders["the other build"] = (sys.executable, model, Path(flags.against))
            if flags.peer and model == "vqgan":
                contenders["diffusers"] = (flags.peer, "diffusers", ROOT)
            rows += compare(model, contenders, flags)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(rows, indent=1) + "\n")


def compare(model: str, contenders: dict[str, tuple[str, str, Path]], flags: Any) -> list[dict]:
    """Steps the contenders in turn and prints a row for each; ratios are to the first."""
    rows: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        running = {}
        for name, (python, kind, folder) in contenders.items():
            command = [python, str(CONTENDERS), kind]
            command += ["--small"] * flags.small
            command += ["--trace"] * (flags.trace and kind == "vqgan" and folder == ROOT)
            process = stack.enter_context(started(command, folder))
            running[name], rows[name] = process, {"name": f"{model}, {name}"} | answer(process)
        for _ in range(flags.repeats):
            for name, process in running.items():
                for key, value in answer(process, "").items():
                    rows[name].setdefault(key, []).append(value)
        for name, process in running.items():
            process.stdin.close()
            rows[name] |= answer(process)
    base = statistics.median(rows["this build"]["seconds"])
    flops = rows["this build"]["flops"]
    for row in rows.values():
        row["median"] = statistics.median(row["seconds"])
        row["ratio"] = row["median"] / base
        row["share_of_peak"] = flops / row["median"] / statistics.median(row["peak"])
        spread = f"{min(row['seconds']) * 1e3:.0f} to {max(row['seconds']) * 1e3:.0f}"
        print(
            f"{row['name']:30}{row['parameters']:11,}{row['median'] * 1e3:11.0f}{spread:>16}"
            f"{row['ratio']:7.2f}{row['share_of_peak']:9.1%}   {row['versions']},"
            f" {statistics.median(row['peak']) / 1e9:.0f} GFLOP/s peak,"
            f" at most {row['peak_memory'] / 2**20:.0f} MiB",
            flush=True,
        )
        for operation, milliseconds in row.pop("operations", []):
            print(f"{milliseconds:14.0f} ms  {operation}")
    return list(rows.values())


if __name__ == "__main__":
    main()
