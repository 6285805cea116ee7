"""What each attention head looks at: a position, the text, or a few tokens.

CogView (arXiv 2105.13290) shows heads of these kinds. The images are sampled for `--prompt` and
`--prompts`, or are those of the captioned folder `--real` or of `--captions`, as for table1. The
report has the shares of every head (`evaluation.attention_shares`); its figure has a panel for
each.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from cogview_jax.data.transforms import SquareView
from cogview_jax.evaluation.accepted_flags import CAPTIONED, PROMPTS, SAMPLING
from cogview_jax.evaluation.attention_figure import heads_figure, text_figure
from cogview_jax.evaluation.attention_shares import (
    KEYS,
    KINDS,
    MARGIN,
    MIXED,
    OFFSETS,
    AttentionMeans,
    HeadShares,
    Places,
    attention_means,
    equal_weights,
    head_shares,
    mean_over,
    places_of,
    text_attention,
)
from cogview_jax.evaluation.benchmark import Measured, Options, Report
from cogview_jax.evaluation.captioned_sets import open_captioned
from cogview_jax.evaluation.image_sets import good_images, require_readable
from cogview_jax.evaluation.page import Curves, Figure, Section, Table
from cogview_jax.models.layer_attention import layer_attention
from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.progress import Progress

NEEDS_FLAGS = ("--prompt",)
NEEDS_PARTS, NEEDS_TASK = EVERY_PART, "text_to_image"
TAKES = ("num_prompts", *SAMPLING, *CAPTIONED, *PROMPTS)
FEATURES = ()
#: Images that are encoded together.
_TOGETHER = 64
#: Prompts whose tokens are listed, and heads whose reading of the first prompt is drawn.
_LISTED, _DRAWN = 4, 3
#: How the kind of a head is found, for the report.
RULE = (
    "shares of the attention of the image's codes: position is on the best"
    f" {OFFSETS} offsets, text on the caption, few tokens on the best {KEYS} tokens outside it. A"
    " head's kind is the share that exceeds that of equal attention to all tokens the most, if by"
    f" {MARGIN:g}, else {MIXED}. Layers and heads count from 0"
)


class _Examples(NamedTuple):
    """Images as codes [n, grid, grid], with their captions, and what a report says of them."""

    texts: Sequence[str]
    codes: Int[np.ndarray, "n grid grid"]
    report: Report


def run(model: CogView, options: Options) -> Measured:
    """Measures every head of a bundle of text_to_image.

    Raises:
        InputError: the bundle is of another task or has sparse attention, or there are no captions.
    """
    if model.parts.engine.model.config.sparse:
        raise InputError(
            "--benchmark attention measures dense attention; the bundle's transformer has sparse"
            " attention"
        )
    asked = options.images
    given = asked.real is not None or asked.captions is not None
    if given == bool(asked.prompts):
        raise InputError(
            "--benchmark attention needs captions like those of training: either --prompt TEXT or"
            " --prompts FILE, of which images are sampled, or --real FOLDER, of captioned images"
        )
    examples = _true(model, options) if given else _sampled(model, options)
    sequences = _sequences(model, examples)
    means = mean_over(_means(model, sequences))
    alike = mean_over(attention_means(equal_weights(len(row)), at) for row, at in sequences)
    shares, equal = head_shares(means), head_shares(alike).shares[0]
    readings = list(_readings(model, examples, sequences, _readers(shares)))
    report = examples.report | {"n": len(sequences), "codes": examples.codes[0].size}
    report |= _report(shares, equal, sequences[0].places.names)
    report["texts"] = [{"text": reading.text, "words": reading.rows()} for reading in readings]
    drawings = {"Mean attention of each head by offset": heads_figure(means, shares, equal)}
    image, first = model.decode(examples.codes[:1])[0], readings[0]
    for name, weights in first.readers.items():
        title = f"{name}, attention of the codes to each word of: {first.text}"
        drawings[title] = text_figure(image, weights, first.words)
    return Measured(report, list(_sections(drawings, shares, readings)))


def _sampled(model: CogView, options: Options) -> _Examples:
    """An image for each prompt."""
    texts = options.images.prompts
    codes = model.generate_codes(
        texts,
        seed=options.seed,
        sampling=options.sampling(model),
        batch_size=options.batch_size,
    )
    return _Examples(texts, codes[:, 0], {"images": "sampled for prompts"})


def _true(model: CogView, options: Options) -> _Examples:
    """Captioned images through the image tokenizer."""
    asked, size = options.images, model.codec.config.image_size
    captioned = open_captioned(
        asked.captions, asked.real, count=options.count, size=size, seed=options.seed
    )
    require_readable(captioned.images, "--real")
    model.prompts.pieces_of(captioned.texts)  # refuses what is no caption
    view, rng, texts, codes = SquareView(size), np.random.default_rng(0), [], []
    for start in range(0, len(captioned.texts), _TOGETHER):
        numbers = range(start, min(start + _TOGETHER, len(captioned.texts)))
        good = good_images(captioned.images, numbers)
        if good:
            codes.append(model.encode(np.stack([view(image, rng) for image in good.values()])))
            texts += [captioned.texts[number] for number in good]
    report = {"images": captioned.name, **captioned.provenance}
    return _Examples(texts, np.concatenate(codes), report)


class _Sequence(NamedTuple):
    """One image and its caption as the transformer reads them, up to the last code."""

    row: Int[np.ndarray, " T"]
    places: Places


def _sequences(model: CogView, examples: _Examples) -> list[_Sequence]:
    layout, pieces = model.layout, model.prompts.pieces_of(examples.texts)
    found = []
    for text, codes in zip(examples.texts, examples.codes, strict=True):
        tokens = layout.tokens({"text": pieces[text], "image": codes.reshape(-1)})
        row = tokens[: np.flatnonzero(tokens < layout.vocabulary.codes)[-1] + 1]
        found.append(_Sequence(row, places_of(layout, row)))
    return found


def _layers(model: CogView, sequence: _Sequence) -> Iterator[Float[np.ndarray, "N T T"]]:
    """The attention weights of each layer."""
    engine, positions = model.parts.engine, model.layout.positions_of(sequence.row)
    for weights in layer_attention(engine.model, engine.params, sequence.row, positions):
        yield np.asarray(weights, np.float32)


def _means(model: CogView, sequences: Sequence[_Sequence]) -> Iterator[AttentionMeans]:
    """The means of each image, [layers, heads]."""
    with Progress(len(sequences), "attention", unit="image") as progress:
        for sequence in sequences:
            layers = [
                attention_means(weights, sequence.places) for weights in _layers(model, sequence)
            ]
            yield AttentionMeans(*map(np.stack, zip(*layers, strict=True)))
            progress.update()


class _Reading(NamedTuple):
    """How heads read a caption.

    Attributes:
        text: the caption.
        words: its tokens.
        every: the mean weight of each token, over the codes and over all heads.
        readers: the weights of some heads, by name: of each token for each code.
    """

    text: str
    words: Sequence[str]
    every: Float[np.ndarray, " W"]
    readers: Mapping[str, Float[np.ndarray, "W Q"]]

    def rows(self) -> list[Report]:
        """What each token has on average over the codes: of all heads, and of each of `readers`."""
        columns = {"all heads": self.every}
        columns |= {name: weights.mean(axis=1) for name, weights in self.readers.items()}
        return [
            {"word": word} | {name: float(column[i]) for name, column in columns.items()}
            for i, word in enumerate(self.words)
        ]


def _readings(
    model: CogView,
    examples: _Examples,
    sequences: Sequence[_Sequence],
    readers: Sequence[tuple[int, int]],
) -> Iterator[_Reading]:
    """Those of the first captions; `readers` are layers and heads."""
    for text, sequence in zip(examples.texts[:_LISTED], sequences, strict=False):
        every: list[np.ndarray] = []
        chosen: dict[tuple[int, int], np.ndarray] = {}
        for layer, weights in enumerate(_layers(model, sequence)):
            by_word = text_attention(weights, sequence.places)
            every.append(by_word.mean(axis=(0, 2), dtype=np.float64))
            chosen |= {(layer, head): by_word[head] for at, head in readers if at == layer}
        pieces = model.parts.tokenizer.text_tokens(text)[: len(every[0])]
        # A space before a word is no part of it.
        words = [piece.replace("\u2581", " ").strip() or "(space)" for piece in pieces]
        by_name = {_name(reader): chosen[reader] for reader in readers}
        yield _Reading(text, words, np.mean(every, axis=0), by_name)


def _report(found: HeadShares, equal: Float[np.ndarray, " 3"], names: Sequence[str]) -> Report:
    """The shares of all heads; `names` are those of the tokens outside the text."""
    kinds = found.kinds(equal)
    counts = Counter(kind for layer in kinds for kind in layer)
    heads = []
    for layer, head in np.ndindex(found.spread.shape):
        at = (layer, head)
        offsets = zip(found.offsets[at].tolist(), found.offset_shares[at].tolist(), strict=True)
        keys = zip(found.keys[at].tolist(), found.key_shares[at].tolist(), strict=True)
        heads.append(
            {"layer": layer, "head": head, "kind": kinds[layer][head]}
            | _named(found.shares[at])
            | {"offsets": [[*offset, share] for offset, share in offsets]}
            | {"offsets_spread": float(found.spread[at])}
            | {"tokens": [[names[key], share] for key, share in keys]}
        )
    return {
        "rule": RULE,
        "kinds": {_key(kind): counts[kind] for kind in (*KINDS, MIXED)},
        "mean": _named(found.shares.mean(axis=(0, 1))),
        "equal_attention": _named(equal),
        "heads": heads,
    }


def _key(kind: str) -> str:
    return kind.replace(" ", "_")


def _named(shares: Float[np.ndarray, " 3"]) -> Report:
    return dict(zip(map(_key, KINDS), shares.tolist(), strict=True))


def _readers(shares: HeadShares) -> list[tuple[int, int]]:
    """The layers and heads that give most of their attention to the text, the first the most."""
    heads = shares.shares.shape[1]
    order = np.argsort(-shares.shares[..., KINDS.index("text")], axis=None, kind="stable")
    return [divmod(int(number), heads) for number in order[:_DRAWN]]


def _name(at: tuple[int, int]) -> str:
    return f"layer {at[0]} head {at[1]}"


def _sections(
    drawings: Mapping[str, Image.Image], shares: HeadShares, readings: Sequence[_Reading]
) -> Iterator[Section]:
    heads, *others = [Figure(title, drawing) for title, drawing in drawings.items()]
    yield heads
    by_layer = shares.shares.mean(axis=1)
    lines = {kind: by_layer[:, number].tolist() for number, kind in enumerate(KINDS)}
    yield Curves("Share of attention, mean over heads", range(len(by_layer)), "layer", lines)
    yield from others
    for reading in readings:
        rows = reading.rows()
        title = f"Mean attention to the words of: {reading.text}"
        yield Table(title, list(rows[0]), [list(row.values()) for row in rows])


def table(report: Mapping[str, Any]) -> str:
    """How many heads are of each kind, what is usual, and the strongest head of each kind."""
    lines = [f"{'kind':12}{'heads':>6}{'mean share':>12}{'of equal attention':>20}  largest share"]
    for kind, count in report["kinds"].items():
        line = f"{kind.replace('_', ' '):12}{count:6}"
        if kind in report["mean"]:
            best = max(report["heads"], key=lambda head: head[kind])
            line += f"{report['mean'][kind]:12.3f}{report['equal_attention'][kind]:20.3f}"
            line += f"  {_name((best['layer'], best['head']))} ({best[kind]:.3f})"
        lines.append(line)
    return "\n".join([*lines, f"N = {report['n']} images, {len(report['heads'])} heads"])
