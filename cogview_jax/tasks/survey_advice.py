"""What a survey of the data suggests to change in a config, and what it warns of."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cogview_jax.evaluation.survey_report import Suggestion, spread
from cogview_jax.tasks.experiment import CodecExperiment, Experiment, TransformerExperiment
from cogview_jax.tasks.store_tokenizers import UNKNOWN
from cogview_jax.tasks.survey_text import TextFit
from cogview_jax.training.codec_loss import VQGANLoss

#: A text region is suggested in steps of so many tokens: a longer one if more than this share of
#: the captions are cut now, a shorter one if it has at most this part of the tokens. So is a text
#: tokenizer of fewer pieces.
_STEP, _CUT, _SHORTER = 8, 0.01, 0.75
#: Mean and deviation of pixels are suggested where they are so far from the config's.
_FAR = 0.02


def advice(
    experiment: Experiment, report: Mapping[str, Any], text: TextFit, exact: str
) -> list[Suggestion]:
    """Flags that fit the data better than the config does.

    Args:
        experiment: whose data it is.
        report: of `survey_report`.
        text: how captions fit.
        exact: the file of names of exact duplicates.
    """
    found = []
    if isinstance(experiment, TransformerExperiment):
        found += _of_text(experiment, text)
    else:
        found += _of_pixels(experiment, report)
    copies = report["duplicates"]["exact"]
    if copies["groups"]:
        extra = copies["records"] - copies["groups"]
        found.append(
            Suggestion(
                f"--config.data.filter.exclude={shlex.quote(exact)}",
                f"leaves out records with the same pixels as another: {extra:,}",
            )
        )
    return found


def problems(experiment: Experiment, report: Mapping[str, Any], text: TextFit) -> list[str]:
    """What training would stop at, or do badly."""
    found, records = [], report["records"]
    share, limit = records["skipped"] / records["read"], experiment.data.max_skipped
    if share > limit:
        found.append(
            f"{share:.1%} of the records cannot be used, more than data.max_skipped = {limit:g}"
            " allows"
        )
    if isinstance(experiment, CodecExperiment):
        side, found_side = experiment.model.image_size, report["images"]["shorter_side"]
        if found_side["p5"] < side:
            found.append(
                f"5% of the images or more have a shorter side below model.image_size = {side} and"
                f" are enlarged; data.filter.min_side={side} leaves them out"
            )
    if text.problem:
        found.append(text.problem)
    if text.unknown > UNKNOWN:
        found.append(
            f"{text.unknown:.0%} of the characters of the captions have no token in"
            " data.text_tokenizer"
        )
    return found


def _of_text(experiment: TransformerExperiment, text: TextFit) -> list[Suggestion]:
    found, own = [], experiment.data.text.pieces
    if text.pieces and (text.pieces > own or text.pieces <= _SHORTER * own):
        means = dict(text.trials)
        best = min(means.values())
        found.append(
            Suggestion(
                f"--config.data.text.pieces={text.pieces} --config.vocabulary.text={text.pieces}",
                f"captions have {means[text.pieces]:.1f} tokens on average; with the best of the"
                f" sizes that were tried, {best:.1f}",
            )
        )
    fit = text.enough or text.tokens
    region = experiment.layout.text_length
    # A model that was trained before knows its own positions only.
    if fit is None or not region or experiment.init_from:
        return found
    held, cut = int(spread(fit.lengths)["p99"]), fit.cut / len(fit.lengths)
    more = f" by a tokenizer of {text.pieces:,} pieces" if text.enough else ""
    length = -(-held // _STEP) * _STEP
    if (cut > _CUT and length > region) or length <= _SHORTER * region:
        found.append(
            Suggestion(
                f"--config.layout.text_length={length}",
                f"99% of the captions have at most {held:,} tokens{more}; {cut:.1%} are longer than"
                f" the {region:,} of layout.text_length",
            )
        )
    return found


def _of_pixels(experiment: CodecExperiment, report: Mapping[str, Any]) -> list[Suggestion]:
    found, model, pixels = [], experiment.model, report["pixels"]
    pairs = [*zip(model.mean, pixels["mean"], strict=True)]
    pairs += zip(model.std, pixels["std"], strict=True)
    # Its losses compare pixels between -1 and 1.
    fixed = isinstance(experiment.loss, VQGANLoss) or experiment.init_from
    if not fixed and max(abs(one - other) for one, other in pairs) > _FAR and min(pixels["std"]):
        flags = " ".join(
            f"--config.model.{name}={_numbers(pixels[name])}" for name in ("mean", "std")
        )
        found.append(Suggestion(flags, "mean and deviation of the pixels of squares of the images"))
    return found


def _numbers(values: Sequence[float]) -> str:
    return ",".join(f"{value:.3f}" for value in values)
