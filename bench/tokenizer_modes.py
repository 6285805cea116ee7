"""Trains image tokenizers with different quantisers side by side: the paper's Figure 2.

  python -m bench.tokenizer_modes --images FOLDER

The paper's four trainings of stage 1 are a learned codebook, Gumbel samples, moving averages and a
fixed codebook. The other modes are quantisers of later work, and codebooks without the remedy for
unused codes. All train the tokenizer of configs/demo_codec.py. Runs of one seed see the same
batches. FOLDER is optional: without it only drawings train.

A record has a row every few steps: the means of the training metrics since the row before, and how
held-out images fare when they are encoded to codes and decoded. A run whose record is in WORKDIR is
not run again. The command prints a table and writes two figures into OUT.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8
from PIL import Image

from bench.tokenizer_figures import Rows, draw, table
from cogview_jax.data.loader import batches
from cogview_jax.data.records import Record
from cogview_jax.data.skipped import SkippedLog
from cogview_jax.data.sources.folder import Folder
from cogview_jax.data.sources.source import Source, readable
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
PAPER = ("learned", "gumbel", "moving_average", "fixed")
#: What each mode changes in the config: settings of the quantiser, the loss and the codec.
MODES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "learned": ({"kind": "learned"}, {}, {}),
    "gumbel": ({"kind": "gumbel"}, {}, {}),
    "moving_average": ({"kind": "moving_average"}, {}, {}),
    "fixed": ({"kind": "fixed"}, {}, {}),
    "cosine": ({"kind": "cosine"}, {}, {"code_width": 8}),
    "fsq": ({"kind": "fsq", "levels": (8, 8, 4)}, {}, {"code_width": 3}),
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
    "tokenizer_quantisers": ("moving_average", *(mode for mode in MODES if mode not in PAPER)),
}
#: So many held-out images are encoded.
HELD_OUT = 256
#: Smaller than the demo, so that all runs take 40 minutes of two cores.
BATCH = 16
SIZES = {"channels": (16, 64), "residual_blocks": 0, "codebook": 256, "code_width": 32}


class Tiles:
    """Square tiles of images, in memory. The shorter side of an image is eight tiles long.

    Args:
        path: the folder of the images.
        size: the side of a tile in pixels.
        held_out: takes the tiles of every eighth image if true, else those of all others.
    """

    def __init__(self, path: str, size: int, *, held_out: bool):
        images = readable(Folder(path=path, require_captions=False).open())
        mine = (record for i, record in enumerate(images) if (i % 8 == 0) == held_out)
        self._records = [tile for record in mine for tile in tiles(record, size)]

    def __len__(self) -> int:
        return len(self._records)

    def key(self, i: int) -> str:
        """Returns the name of the image and the place of the tile in it."""
        return self._records[i].key

    def __getitem__(self, i: int) -> Record:
        return self._records[i]


def tiles(record: Record, size: int) -> list[Record]:
    """Returns the tiles of one image, of `size` x `size` pixels."""
    image = Image.fromarray(record.image)
    scale = 8 * size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    return [
        Record(f"{record.key}:{y}:{x}", pixels[y : y + size, x : x + size], ())
        for y in range(0, height - size + 1, size)
        for x in range(0, width - size + 1, size)
    ]


def experiment(mode: str, seed: int, steps: int, drawings: Path) -> CodecExperiment:
    """Returns the demo's image tokenizer with a mode's settings and `steps` steps of training."""
    config = load_config(str(CONFIG)).to_dict()
    quantiser, loss, model = MODES[mode]
    if quantiser["kind"] == "gumbel":
        quantiser = {"anneal_steps": steps} | quantiser
    config["seed"], config["loss"] = seed, loss
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


class Program(NamedTuple):
    """The jitted functions of an experiment; the seed is an argument, so that seeds share them."""

    transform: Callable[..., Any]
    initial: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, dict[str, Array]]]
    measure: Callable[..., dict[str, Array]]


@functools.cache
def program(experiment: CodecExperiment) -> Program:
    """Returns the functions that train and measure, whatever the experiment's own seed."""
    task = CodecTask(experiment, Workdir("runs"))
    objective = task.objective
    assert isinstance(objective, CodecObjective)
    optimizer = make_optimizer(experiment.optimizer, experiment.train.steps)
    rate = schedule(experiment.optimizer, experiment.train.steps)

    def step(state: TrainState, batch: Any, seed: Any) -> tuple[TrainState, dict[str, Array]]:
        return make_step(objective, optimizer, rate, seed=seed)(state, batch)

    return Program(
        task.transform,
        jax.jit(lambda seed: unbox(initial_state(objective, optimizer, seed))),
        jax.jit(step, donate_argnums=0),
        jax.jit(lambda state, images: held_out_metrics(objective, state, images)),
    )


def train(
    experiment: CodecExperiment, data: tuple[Source, Source], every: int, label: str, workdir: Path
) -> Rows:
    """Trains, and returns a row of metrics for every `every` steps."""
    steps, seed = experiment.train.steps, experiment.seed
    run = program(dataclasses.replace(experiment, seed=0))
    state, images = run.initial(seed), held_out_images(data[1], experiment.model.image_size)
    stream = batches(
        data[0],
        global_batch=experiment.train.global_batch,
        seed=seed,
        transform=run.transform,
        skipped=SkippedLog(workdir, max_skipped=experiment.data.max_skipped),
    )
    rows, means = [], MetricMeans()
    with contextlib.closing(stream), Progress(steps, label) as progress:
        for number in range(1, steps + 1):
            state, metrics = run.step(state, next(stream), seed)
            means.add({name: float(value) for name, value in metrics.items()})
            progress.update(loss=float(metrics["loss"]))
            if number % every == 0 or number == steps:
                held = {f"held_out_{n}": float(v) for n, v in run.measure(state, images).items()}
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
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=25, help="steps between two rows of a record")
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
        draw(runs, modes, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
