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
import collections
import contextlib
import glob
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# What a contender needs is imported by its own process: that of diffusers has no jax.

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "bench" / "results" / "codec_step.json"
#: Pixels, images, channels of level 0, multipliers of levels, latent channels, codes, their width.
SIZES = (128, 8, 32, (1, 2, 4), 64, 1024, 8)
SMALL = (16, 2, 32, (1, 2), 8, 16, 4)
#: Of the plain VQ-VAE: pixels, images, channels.
VQVAE_SIZES, VQVAE_SMALL = (256, 1, 512), (16, 1, 8)
GROUPS = 32
PRODUCT = 2048
THREADS = 2
INSTALL = "python -m venv peer && peer/bin/pip install torch diffusers"

Step = Callable[[], Any]


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
    parser.add_argument("--contender", choices=sorted(CONTENDERS), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.contender:
        serve(flags)
        return
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
            process = stack.enter_context(started(python, kind, folder, flags))
            running[name], rows[name] = process, {"name": f"{model}, {name}"} | answer(process)
        for _ in range(flags.repeats):
            for name, process in running.items():
                process.stdin.write("\n")
                process.stdin.flush()
                for key, value in answer(process).items():
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


@contextlib.contextmanager
def started(python: str, kind: str, folder: Path, flags: Any) -> Iterator[subprocess.Popen]:
    """The process of a contender, with the packages of `folder`."""
    command = [python, str(Path(__file__).resolve()), "--contender", kind]
    command += ["--small"] * flags.small
    command += ["--trace"] * (flags.trace and kind == "vqgan" and folder == ROOT)
    environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "JAX_PLATFORMS": "cpu"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=folder
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: Any) -> dict[str, Any]:
    """The next line of a contender."""
    line = process.stdout.readline()
    if not line:
        raise SystemExit("a contender ended early; its error is above")
    return json.loads(line)


def serve(flags: Any) -> None:
    """Steps whenever a line comes in, and says how long a product and the step took."""
    step, product, facts = CONTENDERS[flags.contender](flags)
    for warm in (step, product):
        warm()
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        peak = 2 * PRODUCT**3 / min(timed(product), timed(product))
        print(json.dumps({"peak": peak, "seconds": timed(step)}), flush=True)
    last: dict[str, Any] = {
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    }
    if flags.trace:
        last["operations"] = operations(step)
    print(json.dumps(last), flush=True)


def timed(call: Step) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def our_step(config: Any, batch: int) -> tuple[Step, Step, dict[str, Any]]:
    """A step and a product with jax, and what is known before."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from cogview_jax.runtime.sharding import unbox
    from cogview_jax.training.codec_objective import CodecObjective, ImageExample

    if hasattr(config, "module"):
        codec = config.module()
    else:  # a build in which there is one kind of image tokenizer
        from cogview_jax.tokenizers import codec as only

        codec = only.Codec(config)
    objective = CodecObjective(codec, global_batch=batch)
    params, state = jax.jit(lambda key: unbox(objective.init(key)))(jax.random.key(0))
    shape = (batch, config.image_size, config.image_size, 3)
    images = ImageExample(np.random.default_rng(0).integers(0, 256, shape, np.uint8))

    def loss(params: Any, state: Any, images: ImageExample) -> jax.Array:
        return objective.sums(params, state, images, jnp.arange(batch), jax.random.key(1)).loss

    step, multiply = jax.jit(jax.value_and_grad(loss)), jax.jit(jnp.matmul)
    matrix = jax.random.normal(jax.random.key(2), (PRODUCT, PRODUCT))
    facts = {
        "versions": f"jax {jax.__version__}",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "flops": batch * objective.flops_per_row,
    }
    return (
        lambda: jax.block_until_ready(step(params, state, images)),
        lambda: jax.block_until_ready(multiply(matrix, matrix)),
        facts,
    )


def vqgan(flags: Any) -> tuple[Step, Step, dict[str, Any]]:
    """Our VQGAN; its codebook is a parameter, as that of diffusers is."""
    from cogview_jax.tokenizers.codecs.vqgan import VQGANConfig
    from cogview_jax.tokenizers.quantisers.learned import Learned

    size, batch, channels, multipliers, latent, codes, width = SMALL if flags.small else SIZES
    config = VQGANConfig(
        image_size=size,
        channels=channels,
        multipliers=multipliers,
        blocks=1,
        attention=(),
        latent_channels=latent,
        codebook=codes,
        code_width=width,
        norm_groups=GROUPS,
        quantiser=Learned(entropy_weight=0.0),
    )
    return our_step(config, batch)


def vqvae(flags: Any) -> tuple[Step, Step, dict[str, Any]]:
    """The plain VQ-VAE, of this or of an older build."""
    try:
        from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig as Config
    except ImportError:
        from cogview_jax.tokenizers.codec import CodecConfig as Config
    size, batch, channels = VQVAE_SMALL if flags.small else VQVAE_SIZES
    return our_step(Config(image_size=size, channels=channels), batch)


def diffusers(flags: Any) -> tuple[Step, Step, dict[str, Any]]:
    """The VQModel of diffusers in torch."""
    try:
        import torch
        from diffusers import VQModel, __version__
    except ImportError as error:
        raise SystemExit(
            f"{sys.executable}: {error}; expected the interpreter of {INSTALL}"
        ) from None
    torch.set_num_threads(THREADS)
    size, batch, channels, multipliers, latent, codes, width = SMALL if flags.small else SIZES
    model = VQModel(
        down_block_types=("DownEncoderBlock2D",) * len(multipliers),
        up_block_types=("UpDecoderBlock2D",) * len(multipliers),
        block_out_channels=tuple(channels * multiplier for multiplier in multipliers),
        latent_channels=latent,
        num_vq_embeddings=codes,
        vq_embed_dim=width,
        norm_num_groups=GROUPS,
    )
    images, matrix = torch.rand(batch, 3, size, size) * 2 - 1, torch.randn(PRODUCT, PRODUCT)

    def step() -> None:
        model.zero_grad()
        quantised, loss, _ = model.quantize(model.encode(images).latents)
        decoded = model.decoder(model.post_quant_conv(quantised))
        (torch.mean((decoded - images) ** 2) + loss).backward()

    facts = {
        "versions": f"diffusers {__version__}, torch {torch.__version__}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return step, lambda: matrix @ matrix, facts


def operations(step: Step) -> list[tuple[str, float]]:
    """The longest operations of a step and their milliseconds, by XLA's names."""
    import jax

    times: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        for plane in jax.profiler.ProfileData.from_file(path).planes:
            for line in plane.lines:
                for event in line.events:
                    if "hlo_op" in {name for name, _ in event.stats}:
                        times[event.name] += event.duration_ns / 1e6
    return times.most_common(25)


CONTENDERS = {"vqgan": vqgan, "vqvae": vqvae, "diffusers": diffusers}

if __name__ == "__main__":
    main()
