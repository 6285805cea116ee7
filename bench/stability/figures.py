"""Draws the figures of the stability experiment."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from bench.stability.failures import LIMIT, SQUARE_LIMIT, failures
from bench.stability.recording import Record
from cogview_jax.models.config import TransformerConfig
from cogview_jax.runtime.files import atomic_path

matplotlib.use("Agg")

Records = Mapping[str, Record]
Models = Mapping[str, TransformerConfig]

#: Okabe and Ito's colours, which the colour-blind can tell apart. The last lies under the others.
STYLES = (
    {"color": "#0072B2"},
    {"color": "#E69F00"},
    {"color": "#CC79A7"},
    {"color": "#D55E00"},
    {"color": "#009E73", "linewidth": 3.5, "alpha": 0.6, "zorder": 1},
)
#: The failure of a quantity is shown in this panel.
PANELS = {"main": "main", "scores": "scores", "branch": "norm_inputs", "squares": "norm_inputs"}
#: A loss is averaged over so many steps, because batches are small.
SMOOTH = 10


def draw(records: Records, models: Models, constant: Mapping[str, float], out: Path) -> None:
    """Draws layers.png, growth.png and losses.png into the folder `out`.

    Args:
        records: the record of each variant, by its name.
        models: the model of each variant, by its name.
        constant: the losses of a model that does not see its input; see `constant_losses`.
        out: the folder.
    """
    figures = {
        "layers": layers(records, models),
        "growth": growth(records, models),
        "losses": losses(records, constant),
    }
    for name, figure in figures.items():
        with atomic_path(out / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110)
        pyplot.close(figure)


def layers(records: Records, models: Models) -> Figure:
    """Draws the main branch by layer and step, a panel for each variant, a cross at failures."""
    figure, panels = pyplot.subplots(
        1, len(records), figsize=(14, 3.6), sharex=True, sharey=True, layout="constrained"
    )
    steps = max(record.steps for record in records.values())
    colours = {
        "cmap": pyplot.get_cmap("viridis").with_extremes(bad="black"),
        "norm": LogNorm(1, LIMIT),
    }
    for (name, record), panel in zip(records.items(), panels, strict=True):
        values = np.where(np.isfinite(record.main), record.main, np.nan).T
        image = panel.imshow(
            values, aspect="auto", origin="lower", interpolation="nearest", **colours
        )
        for failure in failures(record, models[name]):
            _cross(panel, failure.step, failure.layer, "red")
        panel.set(title=name, xlabel="step", xlim=(-0.5, steps - 0.5))
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=panels, label="largest |value| in the main branch", pad=0.01)
    return figure


def growth(records: Records, models: Models) -> Figure:
    """Draws the largest values of any layer, step by step, and the largest of float16."""
    figure, axes = pyplot.subplots(1, 3, figsize=(14, 5), sharey=True, layout="constrained")
    titles = {
        "main": "main branch",
        "scores": "attention scores",
        "norm_inputs": "inputs of LayerNorms",
    }
    panels = dict(zip(titles, axes, strict=True))
    for quantity, panel in panels.items():
        panel.axhline(LIMIT, color="black", linewidth=1)
        panel.set(title=titles[quantity], xlabel="step", yscale="log", ylim=(0.1, 3e6))
        panel.grid(alpha=0.25)
        _remark(panel, LIMIT, "65,504: float16's largest number")
    for (name, record), style in zip(records.items(), STYLES, strict=False):
        for quantity, panel in panels.items():
            values = getattr(record, quantity)
            largest = np.where(np.isfinite(values).all(axis=1), values.max(axis=1), np.nan)
            panel.plot(largest, label=name, **style)
        if models[name].pb_relax_attention:
            scores = record.scores.max(axis=1) * models[name].alpha
            relaxed = np.where(np.isfinite(scores), scores, np.nan)
            panels["scores"].plot(relaxed, ":", color=style["color"], label=f"{name}, x alpha")
        for failure in failures(record, models[name]):
            height = SQUARE_LIMIT if failure.quantity == "squares" else LIMIT
            _cross(panels[PANELS[failure.quantity]], failure.step, height, style["color"])
    last = panels["norm_inputs"]
    last.axhline(SQUARE_LIMIT, color="black", linewidth=1, linestyle="--")
    _remark(last, SQUARE_LIMIT / 2.2, "256: the largest whose square it holds")
    axes[0].set_ylabel("largest |value| of all layers")
    panels["scores"].legend(loc="lower right", fontsize=9)
    return figure


def losses(records: Records, constant: Mapping[str, float]) -> Figure:
    """Draws the losses of text and image tokens, smoothed over steps, a cross at failures."""
    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    kinds = {"text_loss": "text tokens", "image_loss": "image tokens"}
    for panel, (kind, title) in zip(panels, kinds.items(), strict=True):
        for (name, record), style in zip(records.items(), STYLES, strict=False):
            finite = np.isfinite(record.loss)
            alive = record.steps if finite.all() else int(np.argmin(finite))
            values = smoothed(getattr(record, kind)[:alive])
            panel.plot(values, label=name, **style)
            if alive < record.steps:
                _cross(panel, alive - 1, values[-1], style["color"])
        panel.axhline(constant[kind], color="black", linestyle="--", linewidth=1, label="constant")
        panel.set(title=title, xlabel="step", ylabel=f"cross-entropy, mean of {SMOOTH} steps")
        panel.grid(alpha=0.25)
    panels[1].legend(fontsize=9)
    return figure


def smoothed(values: np.ndarray) -> np.ndarray:
    """Returns the mean of each value and up to SMOOTH - 1 before it: [S] -> [S]."""
    total = np.concatenate([[0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - SMOOTH, 0)
    return (total[ends] - total[starts]) / (ends - starts)


def _remark(panel: Axes, height: float, text: str) -> None:
    """Writes a text at the right edge of a panel, just above a height."""
    place = {"transform": panel.get_yaxis_transform(), "ha": "right", "fontsize": 9}
    panel.text(0.98, 1.15 * height, text, **place)


def _cross(panel: Axes, step: int, height: float, colour: str) -> None:
    panel.plot(step, height, "x", color=colour, markersize=10, mew=2.5, clip_on=False, zorder=5)
