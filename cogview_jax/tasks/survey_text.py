"""How the captions of a survey fit a text tokenizer and the text region of a sequence."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cogview_jax.evaluation.survey_report import TokenLengths
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.progress import waiting
from cogview_jax.tasks.experiment import Experiment, TransformerExperiment
from cogview_jax.tasks.store_tokenizers import given_text
from cogview_jax.tokenizers.text import LONGEST, TextTokenizer, train_text_tokenizer

#: Captions that text tokenizers of other sizes are trained on and measured with.
_TRIAL = 20_000
#: Sizes of text tokenizers that are tried: powers of two.
_SMALLEST, _LARGEST = 256, 2**16
#: The smallest of which captions have at most so many times the tokens of the best one is enough.
ENOUGH = 1.05


@dataclass(frozen=True)
class TextFit:
    """How captions fit.

    Attributes:
        tokens: lengths by the tokenizer of the config; None where no text is read, or there is no
            such tokenizer.
        unknown: the share of the captions' characters that a given tokenizer has no token for.
        problem: why none can be trained as the config says; empty where one can.
        trials: the pieces of tokenizers that were trained, and the mean tokens of a caption.
        pieces: of those, the ones that are enough; 0 where nothing was tried.
        enough: lengths by that tokenizer.
    """

    tokens: TokenLengths | None = None
    unknown: float = 0.0
    problem: str = ""
    trials: tuple[tuple[int, float], ...] = ()
    pieces: int = 0
    enough: TokenLengths | None = None


def fit_text(experiment: Experiment, texts: Sequence[str]) -> TextFit:
    """Tokenizes captions as the experiment does, or as it would: `prepare` trains the tokenizer.

    Args:
        experiment: of an image tokenizer, nothing is done.
        texts: captions of records chosen at random.

    Raises:
        InputError: a given text tokenizer cannot be read.
    """
    if not isinstance(experiment, TransformerExperiment) or not texts:
        return TextFit()
    region = experiment.layout.text_length
    if experiment.data.text_tokenizer:
        text = given_text(experiment.data)
        name = f"{experiment.data.text_tokenizer} of {len(text):,} pieces"
        return TextFit(_lengths(text, texts, name, region), text.unknown_share(texts))
    with waiting("training text tokenizers"):
        return _trained(experiment, texts, region)


def _trained(experiment: TransformerExperiment, texts: Sequence[str], region: int) -> TextFit:
    config = experiment.data.text
    short = [text for text in texts if len(text.encode()) <= LONGEST]
    short = short[:: max(1, len(short) // _TRIAL)]

    def train(pieces: int) -> TextTokenizer:
        return train_text_tokenizer(short, replace(config, pieces=pieces))

    problem, trained = "", {}
    try:
        trained[config.pieces] = train(config.pieces)
    except InputError as error:
        problem = str(error)
    size = _SMALLEST
    # Smaller ones than the config's are enough perhaps; or else the first that can be trained.
    while size <= _LARGEST and (size < config.pieces if not problem else not trained):
        with contextlib.suppress(InputError):  # too few for all characters
            trained[size] = train(size)
        size *= 2
    if not trained:
        return TextFit(problem=problem)
    # Small data give fewer pieces than are asked for: no more of them are suggested.
    sizes = {min(asked, len(text)): text for asked, text in trained.items()}
    trials = tuple((size, _mean(sizes[size], short)) for size in sorted(sizes))
    least = min(mean for _, mean in trials)
    pieces = next(size for size, mean in trials if mean <= ENOUGH * least)

    def lengths(text: TextTokenizer) -> TokenLengths:
        name = f"one trained on these captions, of {len(text):,} pieces"
        return _lengths(text, texts, name, region)

    return TextFit(
        lengths(trained[config.pieces]) if config.pieces in trained else None,
        problem=problem,
        trials=trials,
        pieces=pieces,
        enough=lengths(sizes[pieces]),
    )


def _lengths(text: TextTokenizer, texts: Sequence[str], name: str, region: int) -> TokenLengths:
    return TokenLengths(name, np.array([len(text.encode(each)) for each in texts]), region)


def _mean(text: TextTokenizer, texts: Sequence[str]) -> float:
    return float(np.mean([len(text.encode(each)) for each in texts]))
