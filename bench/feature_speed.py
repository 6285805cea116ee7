"""Compares features by Inception with pytorch-fid in torch, and measures peak memory.

    .venv/bin/python -m bench.feature_speed --peer PYTHON [--pictures 1000] [--turn 100]
    .venv/bin/python -m bench.feature_speed --memory FILE [--pictures 20000]

PYTHON is an interpreter with torch, torchvision and pytorch-fid 0.3.0:
`python -m venv peer && peer/bin/pip install torch torchvision pytorch-fid`. Both read the same PNG
files of 256 x 256 pixels and have the same random weights, the protocol of pytorch-fid, and two
threads; `--turn` pictures at a time, they take turns. The first turn of each is not counted.

--memory says the peak memory of this process after a tenth of the pictures of 64 x 64 pixels, and
after all of them, by EfficientNet-Lite0 with the weights in FILE. It includes the compilation.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "feature_speed.json"
PIXELS, BATCH, THREADS = 256, 50, 2
MIB = 1 << 20

#: The contender, for an interpreter of its own. A line from outside is a list of files; a line back
#: has the seconds and the sums of features of the first and the last picture.
PEER = f"""
import json, sys, time
import pytorch_fid.inception as inception, torch
from pytorch_fid.fid_score import get_activations
torch.set_num_threads({THREADS})
state = torch.load(sys.argv[1], weights_only=True)
inception.load_state_dict_from_url = lambda *args, **kwargs: state
load = torch.nn.Module.load_state_dict
torch.nn.Module.load_state_dict = lambda self, state: load(self, state, strict=False)
model = inception.InceptionV3()
print(json.dumps({{"torch": torch.__version__}}), flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    found = get_activations(json.loads(line), model, {BATCH}, 2048, "cpu", {THREADS})
    seconds = time.perf_counter() - start
    print(json.dumps({{"seconds": seconds, "sums": found[[0, -1]].sum(1).tolist()}}), flush=True)
"""


def main() -> None:
    """Measures and prints; with "own", is our contender."""
    if sys.argv[1:2] == ["own"]:
        own(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", help="an interpreter with torch, torchvision and pytorch-fid")
    parser.add_argument("--memory", metavar="FILE", help="weights of EfficientNet-Lite0")
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--turn", type=int, default=100)
    flags = parser.parse_args()
    if flags.memory:
        memory(flags.memory, flags.pictures or 20_000)
    if flags.peer:
        speed(flags.peer, flags.pictures or 1000, flags.turn)


def speed(peer: str, pictures: int, turn: int) -> None:
    """Seconds of a picture, by turns."""
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "inception.pth"
        write_random_weights(weights)
        files = [str(file) for file in write_pictures(Path(folder), pictures)]
        own_command = [sys.executable, "-m", "bench.feature_speed", "own", str(weights)]
        commands = {"own": own_command, "pytorch-fid": [peer, "-c", PEER, str(weights)]}
        running = {name: Contender(command) for name, command in commands.items()}
        rows: dict[str, list[float]] = {name: [] for name in running}
        for begin in (0, *range(0, pictures, turn)):
            part = files[begin : begin + turn]
            answers = {name: contender.ask(part) for name, contender in running.items()}
            sums = np.array([answer["sums"] for answer in answers.values()])
            assert np.allclose(*sums, rtol=1e-4), f"other features: {sums.tolist()}"
            for name, answer in answers.items():
                rows[name].append(answer["seconds"] / len(part))
            print({name: round(row[-1], 4) for name, row in rows.items()}, file=sys.stderr)
        for contender in running.values():
            contender.process.stdin.close()
    report = {"pictures": pictures, "turn": turn, "batch": BATCH, "threads": THREADS}
    report["seconds_a_picture"] = {name: row[1:] for name, row in rows.items()}
    ours, theirs = (np.array(row[1:]) for row in rows.values())
    report["speed"] = {
        "of_sums": theirs.sum() / ours.sum(),
        "median_of_turns": statistics.median(theirs / ours),
    }
    from cogview_jax.runtime.files import write_json

    write_json(RESULT, report)
    print(f"features of {pictures} pictures of {PIXELS} x {PIXELS} pixels, {turn} a turn")
    for name, row in rows.items():
        print(f"  {name:12}{1 / statistics.median(row[1:]):8.2f} pictures a second (median turn)")
    print(
        "  speed, ours of theirs: {of_sums:.3f}, median of turns {median_of_turns:.3f}".format(
            **report["speed"]
        )
    )


class Contender:
    """A process that answers each line of JSON by one."""

    def __init__(self, command: list[str]):
        """Starts it, and waits until it is ready."""
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(THREADS)},
        )
        self.facts = json.loads(self.process.stdout.readline())

    def ask(self, files: list[str]) -> dict:
        """What it says of some files."""
        self.process.stdin.write(json.dumps(files) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def own(weights: str) -> None:
    """Our contender."""
    from cogview_jax.evaluation.features import FeatureExtractor

    extractor = FeatureExtractor("inception", weights, resize="legacy_pytorch", batch_size=BATCH)
    print(json.dumps(extractor.describe()), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        images = (np.asarray(Image.open(file).convert("RGB")) for file in json.loads(line))
        found = np.concatenate([batch.pooled for batch in extractor(images)])
        seconds = time.perf_counter() - start
        sums = found[[0, -1]].sum(1).tolist()
        print(json.dumps({"seconds": seconds, "sums": sums}), flush=True)


def memory(weights: str, pictures: int) -> None:
    """Peak memory after a tenth of the pictures and after all."""
    from cogview_jax.evaluation.features import FeatureExtractor

    extractor = FeatureExtractor("efficientnet_lite0", weights, batch_size=BATCH)
    rng = np.random.default_rng(0)
    done, peaks = 0, {}
    for batch in extractor(rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(pictures)):
        done += len(batch.pooled)
        if done in (pictures // 10, pictures):
            peaks[done] = peak_memory()
            print(f"{done:7} pictures: peak memory {peaks[done] / MIB:.0f} MiB", flush=True)
    first, last = peaks.values()
    print(f"the whole of a tenth: {last / first:.3f}")


def peak_memory() -> int:
    """VmHWM, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def write_pictures(folder: Path, count: int) -> Iterator[Path]:
    """Smooth random pictures as PNG files."""
    rng = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
        path = folder / f"{i:05d}.png"
        small.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(path)
        yield path


def write_random_weights(path: Path) -> None:
    """Weights of Inception with activations of order 1."""
    from cogview_jax.interop.torch_format.file import write_torch
    from cogview_jax.interop.torch_format.pickle import Slot
    from cogview_jax.models.networks.inception import CLASSES, CONVS, FEATURES

    rng, state = np.random.default_rng(0), {}
    for name, (rows, columns, inputs, outputs) in CONVS.items():
        shape, spread = (outputs, inputs, rows, columns), (2.25 / (inputs * rows * columns)) ** 0.5
        state[f"{name}.conv.weight"] = spread * rng.standard_normal(shape)
        state[f"{name}.bn.weight"] = 1 + 0.1 * rng.standard_normal(outputs)
        state[f"{name}.bn.bias"] = 0.1 * rng.standard_normal(outputs)
        state[f"{name}.bn.running_mean"] = 0.1 * rng.standard_normal(outputs)
        state[f"{name}.bn.running_var"] = np.exp(0.2 * rng.standard_normal(outputs))
    state["fc.weight"] = rng.standard_normal((CLASSES, FEATURES))
    state["fc.bias"] = rng.standard_normal(CLASSES)
    state = {name: array.astype(np.float32) for name, array in state.items()}
    slots = {name: Slot(array.shape, array.dtype) for name, array in state.items()}
    write_torch(path, slots, [(slots[name], array) for name, array in state.items()])


if __name__ == "__main__":
    main()
