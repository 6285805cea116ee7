"""Draws the figures of `bench.tokenizer_modes`, and writes its table."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot

from cogview_jax.runtime.files import atomic_path

matplotlib.use("Agg")

#: The rows of a run, one for every few steps: the step and the metrics by their names.
Rows = list[dict[str, float]]
#: Data set -> mode -> the rows of each run.
Runs = Mapping[str, Mapping[str, Sequence[Rows]]]

#: Okabe and Ito's colours, which the colour-blind can tell apart, and two more.
COLOURS = (
    *("#009E73", "#0072B2", "#E69F00", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#7F7F7F"),
)
#: The panels of a figure: the metric of a row, and whether its axis is logarithmic.
PANELS = {
    "training MSE": ("l2", True),
    "held-out MSE through codes": ("held_out_l2", True),
    "share of codes that held-out images use": ("held_out_codebook_usage", False),
    "perplexity of held-out codes": ("held_out_perplexity", False),
    "dead codes in training": ("dead_codes", False),
}


def draw(runs: Runs, modes: Sequence[str], path: Path) -> None:
    """Draws metrics over steps: a row of panels for each data set, a thin line for each seed.

    Thick lines are means of the seeds.

    Args:
        runs: all runs.
        modes: those that are drawn.
        path: the PNG file.
    """
    size = {"figsize": (19, 3.9 * len(runs)), "layout": "constrained"}
    figure, axes = pyplot.subplots(len(runs), len(PANELS), squeeze=False, **size)
    for (data, by_mode), panels in zip(runs.items(), axes, strict=True):
        for panel, (title, (name, log)) in zip(panels, PANELS.items(), strict=True):
            for colour, mode in zip(COLOURS, modes, strict=False):
                if mode not in by_mode:
                    continue
                curves = np.array([[row[name] for row in rows] for rows in by_mode[mode]])
                steps = [row["step"] for row in by_mode[mode][0]]
                panel.plot(steps, curves.T, color=colour, linewidth=0.7, alpha=0.5)
                panel.plot(steps, curves.mean(axis=0), color=colour, linewidth=1.8, label=mode)
            panel.set(title=title, xlabel="step", yscale="log" if log else "linear")
            panel.grid(alpha=0.25, which="both")
        panels[0].set_ylabel(data)
        panels[0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=90)
    pyplot.close(figure)


def table(runs: Runs) -> str:
    """Returns a Markdown table of the last rows: means of the seeds ± one standard error."""
    lines = [("data", "mode", "n", *PANELS), ("---",) * (3 + len(PANELS))]
    for data, by_mode in runs.items():
        for mode, found in by_mode.items():
            last = [[rows[-1][name] for rows in found] for name, _ in PANELS.values()]
            lines.append((data, mode, str(len(found)), *map(mean_and_error, last)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mean_and_error(values: Sequence[float]) -> str:
    """Returns the mean ± one standard error; of a single value, the value."""
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4g}{error}"
