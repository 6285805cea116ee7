"""Compares image tokenizers on held-out images: MSE, PSNR, LPIPS by AlexNet, use of the codebook.

    python -m bench.codec_comparison --images images --lpips alexnet.ckpt --out compared \\
        --run "VQ-VAE=runs/vqvae" --run "VQGAN=runs/vqgan"

IMAGES is a folder of `bench.real_images`: held_out/ and train/ hold KIND_NUMBER_PART.png, and the
parts of a number are of one photograph. A run is the workdir of a finished `cogview train`. OUT
gets results.json, images.png and curves.png; the last needs matplotlib.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart
from cogview_jax.data.transforms import center_crop, to_rgb
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.interop.feature_weights import read_lpips
from cogview_jax.models.networks.lpips import LpipsWeights, lpips
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.files import write_json

#: Images that are encoded, decoded and judged at once.
ROWS = 32
#: Images of the figure, a side of a cell in pixels, and the metrics whose curves are drawn.
SHOWN, CELL = 8, 128
CURVES = {
    "codebook_usage": "share of codes that a batch uses",
    "dead_codes": "dead codes",
    "perplexity": "perplexity",
    "psnr": "PSNR (dB)",
}


def read_images(files: Sequence[Path], size: int) -> np.ndarray:
    """Reads images as uint8 [n, size, size, 3], cropped to their centre."""
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(center_crop(to_rgb(np.asarray(image)), size))
    return np.stack(images)


def in_parts(function, *arrays: np.ndarray) -> np.ndarray:
    """Calls a function of arrays with ROWS of their rows at a time, and joins its results."""
    parts = range(0, len(arrays[0]), ROWS)
    return np.concatenate([function(*(x[i : i + ROWS] for x in arrays)) for i in parts])


def distances(
    images: np.ndarray, decoded: np.ndarray, weights: LpipsWeights
) -> dict[str, np.ndarray]:
    """Computes the metrics of each image, float [n], from uint8 images [n, h, w, 3].

    mse is of values in [0, 1], psnr its decibels, lpips the distance by the network of `weights`.
    """
    mse = np.mean((images / 255.0 - decoded / 255.0) ** 2, axis=(1, 2, 3))

    @jax.jit
    def compare(a: jax.Array, b: jax.Array) -> jax.Array:
        return lpips(weights, *(x.astype(jnp.float32) / 127.5 - 1 for x in (a, b)))

    return {
        "mse": mse,
        "psnr": -10 * np.log10(np.maximum(mse, 1e-10)),
        "lpips": in_parts(compare, images, decoded),
    }


def mean_and_error(values: np.ndarray, groups: Sequence[str]) -> dict[str, float | None]:
    """Returns the mean and its standard error, where values of one group are not independent.

    The error is that of a ratio of sums over groups (Cochran 1977, Sampling Techniques, 11.8); with
    groups of one value it is the usual std / sqrt(n). One group alone has none.
    """
    names, numbers = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(numbers, values - values.mean())
    count = len(names)
    mean = float(values.mean())
    if count == 1:
        return {"mean": mean, "standard_error": None}
    error = np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(values)
    return {"mean": mean, "standard_error": float(error)}


def codebook_use(codes: np.ndarray, codebook: int) -> dict[str, float]:
    """Returns the share of codes that are used at all, and the perplexity of their frequencies."""
    counts = np.bincount(codes.reshape(-1), minlength=codebook)
    shares = counts[counts > 0] / counts.sum()
    return {
        "used": float(np.mean(counts > 0)),
        "perplexity": float(np.exp(-np.sum(shares * np.log(shares)))),
        "codes": int(counts.sum()),
    }


def summaries(
    values: Mapping[str, np.ndarray], kinds: np.ndarray, groups: np.ndarray
) -> dict[str, dict]:
    """Returns mean and error of each metric, for all images and for each kind of image."""
    chosen = {"all": np.full(len(kinds), True)} | {k: kinds == k for k in np.unique(kinds)}
    return {
        kind: {"n": int(rows.sum()), "groups": len(np.unique(groups[rows]))}
        | {name: mean_and_error(x[rows], groups[rows]) for name, x in values.items()}
        for kind, rows in chosen.items()
    }


def compare(
    codecs: Mapping[str, CodecPart], folder: Path, weights: LpipsWeights
) -> tuple[dict, dict[str, np.ndarray], list[str]]:
    """Measures every codec on the images of a folder.

    Args:
        codecs: image tokenizers of one size of images, by name.
        folder: with the folders held_out and train, see the top of this file.
        weights: of LPIPS.

    Returns:
        The results, by codec and kind of image; "difference", of each later codec from the first
        in the same images; the held-out images and what each codec makes of them; their names.
    """
    size = next(iter(codecs.values())).config.image_size
    files = sorted((folder / "held_out").glob("*.png"))
    held_out = read_images(files, size)
    train = read_images(sorted((folder / "train").glob("*.png")), size)
    kinds = np.array([file.stem.split("_")[0] for file in files])
    groups = np.array([file.stem.rpartition("_")[0] for file in files])
    shown, measured, results = {"input": held_out}, {}, {}
    for name, codec in codecs.items():
        model = CogView(codec=codec)
        codes = in_parts(model.encode, held_out)
        decoded = in_parts(model.decode, codes)
        everything = np.concatenate([codes, in_parts(model.encode, train)])
        measured[name], shown[name] = distances(held_out, decoded, weights), decoded
        results[name] = summaries(measured[name], kinds, groups) | {
            "parameters": sum(x.size for x in jax.tree.leaves(codec.params)),
            "held_out": codebook_use(codes, codec.config.codebook),
            "held_out_and_train": codebook_use(everything, codec.config.codebook),
        }
    base, *others = measured
    results["difference"] = {
        name: summaries(
            {key: values - measured[base][key] for key, values in measured[name].items()},
            kinds,
            groups,
        )
        for name in others
    }
    return results, shown, [file.stem for file in files]


def figure(shown: Mapping[str, np.ndarray], columns: Sequence[int]) -> Image.Image:
    """Draws a row for the input and for each codec, and a column for each chosen image."""
    images = [row[column] for row in shown.values() for column in columns]
    return caption_grid(images, [name for name in shown for _ in columns], len(columns), CELL)


def curves(runs: Mapping[str, Path], path: Path) -> None:
    """Draws the metrics of training by step, as a PNG at `path`."""
    from matplotlib import pyplot  # an extra of development

    drawing, panels = pyplot.subplots(
        1, len(CURVES), figsize=(3.4 * len(CURVES), 3), layout="constrained"
    )
    for name, run in runs.items():
        lines = (run / "metrics" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        steps = [json.loads(line) for line in lines]
        for panel, metric in zip(panels, CURVES, strict=True):
            points = [(step["step"], step[metric]) for step in steps if metric in step]
            panel.plot(*zip(*points, strict=True), label=name)
    for panel, (metric, title) in zip(panels, CURVES.items(), strict=True):
        panel.set(title=title, xlabel="step", ylim=(0, 1.02) if "usage" in metric else None)
        panel.grid(alpha=0.25)
    panels[0].legend()
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


def named_run(text: str) -> tuple[str, Path]:
    """Reads NAME=WORKDIR."""
    name, equals, workdir = text.partition("=")
    if not equals or not (Path(workdir) / "bundle").is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=WORKDIR of a finished run")
    return name, Path(workdir)


def main(arguments: Sequence[str] | None = None) -> None:
    """Flags in, results and figures out."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.codec_comparison", description=(__doc__ or "").splitlines()[0]
    )
    add = partial(parser.add_argument, required=True)
    add("--run", action="append", type=named_run, help="NAME=WORKDIR; repeat it")
    add("--images", type=Path, help="the folder with held_out/ and train/")
    add("--lpips", type=Path, help="the weights of LPIPS by AlexNet")
    add("--out", type=Path, help="the folder to write")
    parser.add_argument("--show", nargs="+", help="held-out images of the figure, such as emoji_8")
    flags = parser.parse_args(arguments)
    runs = dict(flags.run)
    codecs = {name: Bundle(run / "bundle").codec() for name, run in runs.items()}
    results, shown, names = compare(codecs, flags.images, read_lpips(flags.lpips, "alexnet"))
    if unknown := sorted(set(flags.show or ()) - set(names)):
        parser.error(f"--show {' '.join(unknown)}: no held-out images")
    chosen = [names.index(name) for name in flags.show or ()]
    chosen = chosen or list(range(0, len(names), -(-len(names) // SHOWN)))
    flags.out.mkdir(parents=True, exist_ok=True)
    write_json(flags.out / "results.json", results)
    figure(shown, chosen).save(flags.out / "images.png")
    curves(runs, flags.out / "curves.png")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
