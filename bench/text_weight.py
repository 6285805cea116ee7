"""Does a transformer learn what captions mean when the loss has no text tokens?

  python -m bench.text_weight --demo runs/demo [--weights 0 0.1 1 10] [--seeds 0 1]

CogView (arXiv 2105.13290, section 2.3) says that a model whose text tokens have weight 0 in the
loss draws images unrelated to the text. Each weight and seed trains the transformer of
configs/demo.py on the token store of a finished `make demo`, with fewer steps, and is asked for
fresh captions on the way; the judge of captioned shapes says which attributes are right. A run that
was interrupted goes on when the command is started again, and a finished one is not run again.

The command writes text_weight.png into OUT and prints a table. Chance is the share of true drawings
that show what another caption says.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot

from cogview_jax.runtime.config_flag import load_config
from cogview_jax.runtime.files import atomic_path
from cogview_jax.shapes.fresh import FreshScenes, fresh_scenes
from cogview_jax.shapes.judge import judge, shares
from cogview_jax.tasks.experiment import TransformerExperiment, read_experiment
from cogview_jax.tasks.training import run

matplotlib.use("Agg")

CONFIG = Path(__file__).parents[1] / "configs" / "demo.py"
SPLITS = {"seen": "seen pairs of colour and shape", "held_out": "held-out pairs"}
COLOURS = ("#D55E00", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one run trains: the weight of a text token, its gradient into embeddings, the seed."""

    text_weight: float
    embedding_gradient: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its workdir."""
        gradient = f"_gradient_{self.embedding_gradient:g}" if self.embedding_gradient != 1 else ""
        return f"weight_{self.text_weight:g}{gradient}_seed_{self.seed}"

    @property
    def label(self) -> str:
        """The setting without its seed, for people."""
        gradient = self.embedding_gradient
        scaled = f", embedding gradient {gradient:g}" if gradient != 1 else ""
        return f"{self.text_weight:g}{scaled}"


def experiment(
    setting: Setting, demo: Path, steps: int, every: int, prompts: int
) -> TransformerExperiment:
    """The demo's transformer with a setting, on the token store of the finished `demo`."""
    config = load_config(str(CONFIG))
    config.seed, config.text_weight = setting.seed, setting.text_weight
    config.model.embedding_gradient = setting.embedding_gradient
    config.optimizer.muon_lr = 0.0  # AdamW, as the paper's model was trained
    config.data.store = str(demo / "tokens")
    config.data.image_tokenizer = str(demo / "codec" / "bundle")
    config.train.update(steps=steps, sample_every=0, benchmark="shapes")
    config.train.update(benchmark_every=every, benchmark_prompts=prompts)
    found = read_experiment(config)
    assert isinstance(found, TransformerExperiment)
    return found


def measured(workdir: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl that have the benchmark, oldest first, one a step."""
    lines = (workdir / "metrics" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {row["step"]: row for row in map(json.loads, lines) if "benchmark/seen/prompts" in row}
    return [rows[step] for step in sorted(rows)]


def chance(fresh: FreshScenes, size: int = 32) -> dict[str, float]:
    """Shares of true drawings that show what the caption of the next scene says, by attribute."""
    others = (*fresh.scenes[1:], fresh.scenes[0])
    return shares(judge(*pair) for pair in zip(fresh.drawings(size), others, strict=True))


def draw(
    runs: dict[str, list[list[dict[str, float]]]], by_chance: dict[str, float], path: Path
) -> None:
    """Draws the share of right images over steps, a panel for each split, a line for each run."""
    figure, panels = pyplot.subplots(1, len(SPLITS), figsize=(11, 4.2), layout="constrained")
    for (split, title), panel in zip(SPLITS.items(), panels, strict=True):
        for colour, (label, of_seeds) in zip(COLOURS, runs.items(), strict=False):
            for number, rows in enumerate(of_seeds):
                steps, right = zip(*[(row["step"], share(row, split)) for row in rows], strict=True)
                shown = f"text weight {label}" if not number else None
                panel.plot(steps, right, ".-", color=colour, linewidth=1.4, label=shown)
        ceiling = share(of_seeds[0][-1], split, "ceiling")
        panel.axhline(ceiling, color="black", linestyle="--", label="ceiling: the image tokenizer")
        panel.axhline(by_chance[split], color="black", linestyle=":", label="chance")
        panel.set(title=title, xlabel="step", ylabel="all attributes right", ylim=(-0.02, 1))
        panel.grid(alpha=0.25)
    panels[0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.94))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)
    pyplot.close(figure)


def share(
    row: dict[str, float], split: str, of: str = "generated", attribute: str = "all"
) -> float:
    """A share of right images in a line of metrics."""
    return row[f"benchmark/{split}/{of}/{attribute}"]


def table(
    runs: dict[str, list[list[dict[str, float]]]], by_chance: dict[str, dict[str, float]]
) -> str:
    """A Markdown table of the last measurements, the mean of the seeds and all of them."""
    columns = [(split, name) for split in SPLITS for name in ("all", "colour", "shape")]
    heads = [f"{split.replace('_', ' ')}: {name}" for split, name in columns]
    lines = [("text weight", *heads, "image loss", "text loss"), ("---",) * (3 + len(columns))]
    for label, of_seeds in runs.items():
        last = [rows[-1] for rows in of_seeds]
        cells = [listed([share(row, split, attribute=of) for row in last]) for split, of in columns]
        losses = [listed([row[name] for row in last]) for name in ("image_loss", "text_loss")]
        lines.append((label, *cells, *losses))
    ceiling = [f"{share(last[0], split, 'ceiling', name):.3f}" for split, name in columns]
    lines.append(("ceiling", *ceiling, "", ""))
    lines.append(("chance", *[f"{by_chance[split][name]:.3f}" for split, name in columns], "", ""))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def listed(values: Sequence[float]) -> str:
    """The mean of the seeds, and each of them."""
    return f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def main() -> None:
    """Trains what is not finished, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demo", default="runs/demo", type=Path, help="a finished make demo")
    parser.add_argument("--weights", nargs="+", type=float, default=[0, 0.1, 1, 10])
    parser.add_argument(
        "--gradients", nargs="+", type=float, default=[1], help="model.embedding_gradient"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--every", type=int, default=400, help="steps between two measurements")
    parser.add_argument("--prompts", type=int, default=200, help="of each split, a measurement")
    parser.add_argument("--workdir", default="runs/text_weight", type=Path)
    parser.add_argument("--out", default="docs/images", type=Path, help="the figure's folder")
    options = parser.parse_args()
    runs: dict[str, list[list[dict[str, float]]]] = {}
    for seed in options.seeds:
        for gradient in options.gradients:
            for weight in options.weights:
                setting = Setting(weight, gradient, seed)
                workdir = options.workdir / setting.name
                size = (options.steps, options.every, options.prompts)
                wanted = experiment(setting, options.demo, *size)
                print(f"{setting.name}:", file=sys.stderr)
                if status := run(wanted, str(workdir)):
                    sys.exit(status)
                runs.setdefault(setting.label, []).append(measured(workdir))
    by_chance = {fresh.name: chance(fresh) for fresh in fresh_scenes(options.prompts, seed=0)}
    print(table(runs, by_chance))
    options.out.mkdir(parents=True, exist_ok=True)
    totals = {split: by_name["all"] for split, by_name in by_chance.items()}
    draw(runs, totals, options.out / "text_weight.png")


if __name__ == "__main__":
    main()
