"""Trains image tokenizers with different quantisers side by side: the paper's Figure 2.

  python -m bench.tokenizer_modes --images FOLDER

The paper's four trainings of stage 1 are a learned codebook, Gumbel samples, moving averages and a
fixed codebook, none of which moves codes that are unused. The other modes are the defaults of this
project, which do, quantisers of later work, and other ways of Gumbel sampling. All train the
tokenizer of configs/demo_codec.py, which is made smaller. Runs of one seed see the same batches.
Without FOLDER only drawings train.

A record has a row every few steps: the means of the training metrics since the row before, and how
held-out images fare when they are encoded to codes and decoded. A run whose record is in WORKDIR is
not run again. The command prints a table and writes the figures into OUT.
"""

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from bench.image_tiles import Tiles
from bench.tokenizer_figures import Rows, draw, table
from cogview_jax.data.loader import batches
from cogview_jax.data.records import Record
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.source import Source
from cogview_jax.data.transforms import center_crop
from cogview_jax.runtime.config import build
from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.files import atomic_path
from cogview_jax.runtime.progress import Progress
from cogview_jax.runtime.sharding import unbox
from cogview_jax.tasks.codec import CodecTask
from cogview_jax.tasks.experiment import CodecExperiment
from cogview_jax.tasks.workdir import Workdir
from cogview_jax.tokenizers.codecs.codec import decode_codes, encode_images
from cogview_jax.tokenizers.quantisers.quantiser import hits_of, use_metrics
from cogview_jax.training.codec_objective import CodecObjective
from cogview_jax.training.metric_means import MetricMeans
from cogview_jax.training.optimizer import make_optimizer, schedule
from cogview_jax.training.state import TrainState, initial_state
from cogview_jax.training.step import make_step

CONFIG = Path(__file__).parents[1] / "configs" / "demo_codec.py"
KEEP = {"revive_below": 0.0}
PAPER = ("learned, no revival", "gumbel", "moving_average, no revival", "fixed")
#: What each mode changes in the config: settings of the quantiser, the loss and the codec.
MODES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "learned": ({"kind": "learned"}, {}, {}),
    "gumbel": ({"kind": "gumbel"}, {}, {}),
    "moving_average": ({"kind": "moving_average"}, {}, {}),
    "fixed": ({"kind": "fixed"}, {}, {}),
    "cosine": ({"kind": "cosine"}, {}, {"code_width": 8}),
    "fsq": ({"kind": "fsq", "levels": (8, 8, 4)}, {}, {"code_width": 3}),
    "gumbel, sampled codes": ({"kind": "gumbel", "hard": True}, {}, {}),
    "gumbel, hardly annealed": ({"kind": "gumbel", "anneal_steps": 10_000}, {}, {}),
    "learned, no revival": ({"kind": "learned"}, KEEP, {}),
    "moving_average, no revival": ({"kind": "moving_average"}, KEEP, {}),
    "cosine, no entropy loss, no revival": (
        {"kind": "cosine", "entropy_weight": 0.0},
        KEEP,
        {"code_width": 8},
    ),
}
#: The figures, and the modes in each.
FIGURES = {
    "tokenizer_modes": PAPER,
    "tokenizer_quantisers": (
        *("learned", "moving_average", "cosine", "fsq"),
        *("moving_average, no revival", "cosine, no entropy loss, no revival"),
    ),
    "tokenizer_gumbel": ("gumbel", "gumbel, sampled codes", "gumbel, hardly annealed"),
}
#: So many held-out images are encoded.
HELD_OUT = 256
#: Smaller than the demo, so that all runs take 40 minutes of two cores.
BATCH = 16
SIZES = {"channels": (16, 64), "residual_blocks": 0, "codebook": 256, "code_width": 32}


def experiment(mode: str, seed: int, steps: int, drawings: Path) -> CodecExperiment:
    """Returns the demo's image tokenizer with a mode's settings and `steps` steps of training."""
    config = load_config(str(CONFIG)).to_dict()
    quantiser, loss, model = MODES[mode]
    if quantiser["kind"] == "gumbel":
        quantiser = {"anneal_steps": steps} | quantiser
    config["seed"], config["loss"] = seed, loss
    config["optimizer"]["muon_lr"] = 0.0  # AdamW, as in the paper
    config["train"] |= {"steps": steps, "global_batch": BATCH}
    config["model"] |= SIZES | model | {"quantiser": quantiser}
    config["data"]["source"]["path"] = str(drawings)
    return build(CodecExperiment, config)


def sources(experiment: CodecExperiment, images: str) -> tuple[Source[Record], Source[Record]]:
    """Returns what trains and what is held out: tiles of `images`, or drawings where it is ""."""
    if images:
        size = experiment.model.image_size
        return Tiles(images, size, held_out=False), Tiles(images, size, held_out=True)
    source: Any = experiment.data.source
    return source.open(), dataclasses.replace(source, split="held_out").open()


def train(
    experiment: CodecExperiment, data: tuple[Source, Source], every: int, label: str, workdir: Path
) -> Rows:
    """Trains, and returns a row of metrics for every `every` steps."""
    steps, seed = experiment.train.steps, experiment.seed
    task = CodecTask(experiment, Workdir(workdir))
    objective = task.objective
    assert isinstance(objective, CodecObjective)
    optimizer = make_optimizer(experiment.optimizer, steps)
    rate = schedule(experiment.optimizer, steps)
    step = jax.jit(make_step(objective, optimizer, rate, seed=seed), donate_argnums=0)
    state = jax.jit(lambda: unbox(initial_state(objective, optimizer, seed)))()
    images = held_out_images(data[1], experiment.model.image_size)
    measure = jax.jit(lambda state: held_out_metrics(objective, state, images))
    stream = batches(
        data[0],
        global_batch=experiment.train.global_batch,
        seed=seed,
        transform=task.transform,
        skipped=SkippedLog(workdir, max_skipped=experiment.data.max_skipped),
    )
    rows, means = [], MetricMeans()
    with contextlib.closing(stream), Progress(steps, label) as progress:
        for number in range(1, steps + 1):
            state, metrics = step(state, next(stream))
            means.add({name: float(value) for name, value in metrics.items()})
            progress.update(loss=float(metrics["loss"]))
            if number % every == 0 or number == steps:
                held = {f"held_out_{n}": float(v) for n, v in measure(state).items()}
                rows.append({"step": number} | means.means() | held)
                means = MetricMeans()
    return rows


def held_out_images(source: Source[Record], size: int) -> UInt8[np.ndarray, "b s s 3"]:
    """Returns up to HELD_OUT images of a source, evenly spaced."""
    places = np.linspace(0, len(source) - 1, min(HELD_OUT, len(source))).astype(int)
    return np.stack([center_crop(source[int(i)].image, size) for i in places])


def held_out_metrics(
    objective: CodecObjective, state: TrainState, images: UInt8[Array | np.ndarray, "b s s 3"]
) -> dict[str, Array]:
    """Returns the MSE of pixels in [0, 1] after encoding and decoding, and how codes are used."""
    codec, params, codebook = objective.codec, state.params, state.model_state
    codes = encode_images(codec, params, codebook, images)
    decoded = decode_codes(codec, params, codebook, codes)
    error = (jnp.float32(decoded) - jnp.float32(images)) / 255
    hits = hits_of(codes, codec.config.codebook)
    # Any use counts here, of the images of one batch that is never trained on.
    usage = {
        "codebook_usage": jnp.mean(hits > 0),
        "perplexity": use_metrics(hits, hits)["perplexity"],
    }
    return {"l2": jnp.mean(error**2)} | usage


def recorded(path: Path, setting: dict[str, Any]) -> Rows | None:
    """Returns the rows of a record at `path` of a run with this `setting`, or None."""
    if not path.exists():
        return None
    first, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return rows if first == json.loads(json.dumps(setting)) else None


def record(path: Path, setting: dict[str, Any], rows: Rows) -> None:
    """Writes the setting of a run and its rows, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        lines = [json.dumps(line) + "\n" for line in (setting, *rows)]
        temporary.write_text("".join(lines), encoding="utf-8")


def main() -> None:
    """Trains what has no record, prints the table and draws the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = f"all by default: {', '.join(map(repr, MODES))}"
    parser.add_argument(
        "--modes", nargs="+", default=list(MODES), choices=MODES, metavar="MODE", help=names
    )
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2], help="of drawings")
    parser.add_argument("--image_seeds", nargs="+", type=int, default=[0], help="of --images")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--every", type=int, default=50, help="steps between two rows of a record")
    parser.add_argument("--images", default="", help="a folder of images to train on as well")
    parser.add_argument("--workdir", default="runs/tokenizer_modes", type=Path)
    parser.add_argument("--out", default="docs/images", type=Path, help="the folder of the figures")
    options = parser.parse_args()
    jobs = [("drawings", "", seed) for seed in options.seeds]
    jobs += [("images", options.images, seed) for seed in options.image_seeds if options.images]
    runs: dict[str, dict[str, list[Rows]]] = {}
    opened: dict[str, Any] = {}
    for data, images, seed in jobs:
        for mode in options.modes:
            wanted = experiment(mode, seed, options.steps, options.workdir / "drawings")
            setting = dataclasses.asdict(wanted) | {"images": images, "every": options.every}
            label = f"{data}, {mode}, seed {seed}"
            path = options.workdir / f"{label.replace(', ', '_').replace(' ', '_')}.jsonl"
            rows = recorded(path, setting)
            if rows is None:
                opened[data] = opened.get(data) or sources(wanted, images)
                rows = train(wanted, opened[data], options.every, label, options.workdir)
                record(path, setting, rows)
            runs.setdefault(data, {}).setdefault(mode, []).append(rows)
    print(table(runs))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, modes in FIGURES.items():
        if {*modes} & {*options.modes}:
            draw(runs, modes, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
