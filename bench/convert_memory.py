"""Measures the peak memory of `convert` in both directions, without that of its libraries.

    .venv/bin/python -m bench.convert_memory

A checkpoint of the tutorial model's sizes (12 layers of width 1024, vocabulary 58,240, 1,089
positions) gets random weights, is read into a bundle and written back, in float32 and in float16.
Each direction is a process of its own. The command prints a table and writes
bench/results/convert_memory.json.

"anonymous" counts the memory of the process itself. "resident" also counts mapped pages of files,
which the system can take back. Both are peaks above the level after the imports. The first should
stay below the size of the output plus the largest tensor.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from cogview_jax.interop.files import SourceFiles
from cogview_jax.interop.official.conversion import from_official, to_official
from cogview_jax.interop.torch_format.file import read_torch, write_torch
from cogview_jax.interop.torch_format.pickle import Slot
from cogview_jax.runtime.files import write_json

RESULT = Path(__file__).parent / "results" / "convert_memory.json"
LAYERS, WIDTH, HEADS, VOCABULARY, POSITIONS = 12, 1024, 16, 58_240, 1089
FILE = "1/mp_rank_00_model_states.pt"
MIB = 1 << 20


def main() -> None:
    """Measures both directions and writes the table; with "measure", measures one direction."""
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measured(*sys.argv[2:])))
        return
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "float16"):
            given, bundle, back = (Path(folder) / f"{dtype}_{n}" for n in ("in", "bundle", "out"))
            largest = write_checkpoint(given, np.dtype(dtype))
            for direction, source, out in (("source", given, bundle), ("target", bundle, back)):
                row = apart(direction, source, out)
                size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
                row |= {"output": size, "limit": size + largest}
                rows.append({"direction": direction, "dtype": dtype} | row)
            same(given / FILE, back / "transformer" / FILE)
    write_json(RESULT, {"peaks": rows})
    print("convert, tutorial model; MiB above the level after the imports")
    print(f"  {'':18}{'anonymous':>10}{'resident':>10}{'limit':>8}{'output':>8}{'seconds':>9}")
    for row in rows:
        sizes = [row[name] / MIB for name in ("anonymous", "resident", "limit", "output")]
        name = f"{row['direction']} {row['dtype']}"
        print("  {:18}{:10.0f}{:10.0f}{:8.0f}{:8.0f}{:9.1f}".format(name, *sizes, row["seconds"]))


def write_checkpoint(directory: Path, dtype: np.dtype) -> int:
    """Writes an official checkpoint of random weights; returns the bytes of its largest tensor."""
    shapes = {"word_embeddings.weight": (VOCABULARY, WIDTH)}
    shapes["transformer.position_embeddings.weight"] = (POSITIONS, WIDTH)
    layer_shapes = {
        "input_layernorm": (WIDTH,),
        "attention.query_key_value": (3 * WIDTH, WIDTH),
        "attention.dense": (WIDTH, WIDTH),
        "post_attention_layernorm": (WIDTH,),
        "third_layernorm": (WIDTH,),
        "fourth_layernorm": (WIDTH,),
        "mlp.dense_h_to_4h": (4 * WIDTH, WIDTH),
        "mlp.dense_4h_to_h": (WIDTH, 4 * WIDTH),
    }
    for layer in range(LAYERS):
        for name, shape in layer_shapes.items():
            shapes[f"transformer.layers.{layer}.{name}.weight"] = shape
            shapes[f"transformer.layers.{layer}.{name}.bias"] = shape[:1]
    for name in ("weight", "bias"):
        shapes[f"transformer.final_layernorm.{name}"] = (WIDTH,)
    slots = {name: Slot(shape, dtype) for name, shape in shapes.items()}
    rng = np.random.default_rng(0)
    arrays = (
        (slot, rng.standard_normal(slot.shape, np.float32).astype(dtype)) for slot in slots.values()
    )
    write_torch(directory / FILE, {"module": slots}, arrays)
    (directory / "latest_checkpointed_iteration.txt").write_text("1")
    return VOCABULARY * WIDTH * dtype.itemsize


def apart(direction: str, source: Path, out: Path) -> dict:
    """Returns `measured` of a process of its own."""
    program = [sys.executable, "-m", "bench.convert_memory"]
    command = [*program, "measure", direction, str(source), str(out)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def measured(direction: str, source: str, out: str) -> dict:
    """Converts, and returns the peaks in bytes above the level before, and the seconds."""
    finished, before = threading.Event(), held()
    peaks = dict(before)

    def watch() -> None:
        while not finished.wait(0.002):
            peaks.update({name: max(peaks[name], now) for name, now in held().items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        if direction == "source":
            from_official(SourceFiles(transformer=source, num_heads=HEADS), out)
        else:
            to_official(source, out)
    finally:
        finished.set()
        watcher.join()
    seconds = time.perf_counter() - start
    return {name: peaks[name] - before[name] for name in peaks} | {"seconds": seconds}


def held() -> dict[str, int]:
    """Returns the bytes of this process in memory, without and with pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    fields = {"anonymous": "RssAnon", "resident": "VmRSS"}
    return {name: int(sizes[field].split()[0]) * 1024 for name, field in fields.items()}


def same(given: Path, back: Path) -> None:
    """Asserts that every tensor has the same bytes in both files."""
    ours, theirs = (read_torch(path)["module"] for path in (back, given))
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].read().tobytes() == tensor.read().tobytes(), name


if __name__ == "__main__":
    main()
