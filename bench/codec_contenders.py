"""The contenders of `bench.codec_step`: each is a process that steps whenever a line comes in.

    PYTHON bench/codec_contenders.py vqgan|vqvae|diffusers [--small] [--trace]

The first line of the output has the facts of a contender as JSON, every further line the seconds
of a step and the FLOPs a second of a product right before, the last one the memory.
"""

import argparse
import collections
import glob
import json
import re
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# What a contender needs is imported by its own process: that of diffusers has no jax.

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
    """Steps whenever a line comes in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("contender", choices=sorted(CONTENDERS))
    parser.add_argument("--trace", action="store_true", help="list the longest operations")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    flags = parser.parse_args()
    step, product, facts = CONTENDERS[flags.contender](flags.small)
    names = facts.pop("names", "")
    step()
    product()
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        peak = 2 * PRODUCT**3 / min(timed(product), timed(product))
        print(json.dumps({"peak": peak, "seconds": timed(step)}), flush=True)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    last: dict[str, Any] = {"peak_memory": kibibytes * 1024}
    if flags.trace:
        last["operations"] = operations(step, names)
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

    step = jax.jit(jax.value_and_grad(loss)).lower(params, state, images).compile()
    multiply = jax.jit(jnp.matmul)
    matrix = jax.random.normal(jax.random.key(2), (PRODUCT, PRODUCT))
    facts = {
        "versions": f"jax {jax.__version__}",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "flops": batch * objective.flops_per_row,
        "names": step.as_text(),
    }
    return (
        lambda: jax.block_until_ready(step(params, state, images)),
        lambda: jax.block_until_ready(multiply(matrix, matrix)),
        facts,
    )


def vqgan(small: bool) -> tuple[Step, Step, dict[str, Any]]:
    """Our VQGAN; its codebook is a parameter, as that of diffusers is."""
    from cogview_jax.tokenizers.codecs.vqgan import VQGANConfig
    from cogview_jax.tokenizers.quantisers.learned import Learned

    size, batch, channels, multipliers, latent, codes, width = SMALL if small else SIZES
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


def vqvae(small: bool) -> tuple[Step, Step, dict[str, Any]]:
    """The plain VQ-VAE, of this or of an older build."""
    try:
        from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig as Config
    except ImportError:
        from cogview_jax.tokenizers.codec import CodecConfig as Config
    size, batch, channels = VQVAE_SMALL if small else VQVAE_SIZES
    return our_step(Config(image_size=size, channels=channels), batch)


def diffusers(small: bool) -> tuple[Step, Step, dict[str, Any]]:
    """The VQModel of diffusers in torch."""
    try:
        import torch
        from diffusers import VQModel, __version__
    except ImportError as error:
        raise SystemExit(
            f"{sys.executable}: {error}; expected the interpreter of {INSTALL}"
        ) from None
    torch.set_num_threads(THREADS)
    size, batch, channels, multipliers, latent, codes, width = SMALL if small else SIZES
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


def operations(step: Step, program: str) -> list[tuple[str, float]]:
    """The operations of a step and their milliseconds, the longest first.

    Args:
        step: runs the program.
        program: its text, which tells from which operation of jax XLA's operations come.
    """
    import jax

    names = dict(re.findall(r'%?([\w.-]+) = .*op_name="([^"]*)"', program))
    times: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            step()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        for plane in jax.profiler.ProfileData.from_file(path).planes:
            for event in (event for line in plane.lines for event in line.events):
                if any(name == "hlo_op" for name, _ in event.stats):
                    name = names.get(event.name, re.sub(r"[.\d]+$", "", event.name))
                    way = "backward" if "transpose(" in name else "forward"
                    times[f"{way} {name.split('/')[-1]}"] += event.duration_ns / 1e6
    return times.most_common(12)


CONTENDERS = {"vqgan": vqgan, "vqvae": vqvae, "diffusers": diffusers}

if __name__ == "__main__":
    main()
