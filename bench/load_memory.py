"""Measures the memory to load a bundle of the sizes of the tutorial model and sample an image.

    .venv/bin/python -m bench.load_memory [--against TREE] [--repeats N] [--dtype T]

The bundle has random weights: 12 layers of width 1024 over 58,240 ids and 1,089 positions, and the
image tokenizer of the paper. A process of its own imports cogview_jax, loads the bundle and samples
one image. With --against, the code in another folder does the same, in turns with this one. The
command prints a table and writes bench/results/load_memory.json.

All numbers are VmHWM, the peak memory of a process. It includes the libraries, the programs while
they are compiled (no compilation cache is used), and the pages of files.
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

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "load_memory.json"
MIB = 1 << 20


def main() -> None:
    """Writes the bundle, measures in turns and prints; with "measure", measures once."""
    if sys.argv[1:2] == ["measure"]:
        print(json.dumps(measured(*sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    flags = parser.parse_args()
    trees = {"this": ROOT} | ({"against": flags.against.resolve()} if flags.against else {})
    rows = {name: [] for name in trees}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        write_random_bundle(bundle)
        for _ in range(flags.repeats):
            for name, tree in trees.items():
                rows[name].append(apart(tree, bundle, flags.dtype))
    from cogview_jax.runtime.files import write_json

    write_json(RESULT, {"dtype": flags.dtype, "peaks": rows})
    print(f"load and one image, tutorial model in {flags.dtype}; peak MiB of the process")
    print(f"  {'code':8}{'imported':>10}{'loaded':>10}{'sampled':>10}{'seconds':>9}")
    for name, runs in rows.items():
        for run in runs:
            sizes = [run[stage] / MIB for stage in ("imported", "loaded", "sampled")]
            print("  {:8}{:10.0f}{:10.0f}{:10.0f}{:9.1f}".format(name, *sizes, run["seconds"]))
    if len(rows) == 2:
        here, there = (statistics.median(run["sampled"] for run in rows[name]) for name in rows)
        print(f"  of the other's: {here / there:.3f}")


def write_random_bundle(path: Path) -> None:
    """Writes a bundle of random weights at `path`."""
    import jax
    import numpy as np

    from cogview_jax.checkpoints.bundle import codec_shapes, transformer_shapes
    from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
    from cogview_jax.checkpoints.bundle_writer import write_bundle
    from cogview_jax.models.config import TransformerConfig
    from cogview_jax.models.transformer import Transformer
    from cogview_jax.runtime.sharding import unbox
    from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig
    from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
    from cogview_jax.tokenizers.quantisers.moving_average import Codebook
    from cogview_jax.tokenizers.text import TextConfig, train_text_tokenizer
    from cogview_jax.tokenizers.vocabulary import Vocabulary

    rng = np.random.default_rng(0)

    def random(shapes):
        return jax.tree.map(
            lambda leaf: 0.02 * rng.standard_normal(leaf.shape, np.float32), unbox(shapes)
        )

    config, vocabulary = TransformerConfig(layers=12, width=1024, heads=16), Vocabulary()
    layout = LayoutConfig(text_length=61, grid=32)
    model = Transformer(config, vocabulary.size, make_layout(layout, vocabulary).positions)
    codec = random(codec_shapes(VQVAEConfig()))
    write_bundle(
        path,
        codec=CodecPart(VQVAEConfig(), codec["params"], Codebook(**codec["codebook"])),
        text=train_text_tokenizer(["a red circle"] * 3, TextConfig(300, "bpe")),
        transformer=TransformerPart(config, vocabulary, layout, random(transformer_shapes(model))),
    )


def apart(tree: Path, bundle: Path, dtype: str) -> dict:
    """Returns `measured` of a process of its own, with the code in `tree`."""
    command = [sys.executable, __file__, "measure", str(tree), str(bundle), dtype]
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_COMPILATION_CACHE_DIR": ""}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def measured(tree: str, bundle: str, dtype: str) -> dict:
    """Returns the peak bytes after imports, loading and sampling, and the seconds of all."""
    import cogview_jax

    assert Path(cogview_jax.__file__).is_relative_to(tree), cogview_jax.__file__
    start, load = time.perf_counter(), cogview_jax.load
    peaks = {"imported": peak()}
    model = load(bundle, dtype=dtype)
    peaks["loaded"] = peak()
    model.generate(["a red circle"])
    return peaks | {"sampled": peak(), "seconds": time.perf_counter() - start}


def peak() -> int:
    """Returns the peak bytes of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes["VmHWM"].split()[0]) * 1024


if __name__ == "__main__":
    main()
