"""How often a model draws what the caption says, on the captioned shapes."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from cogview_jax.shapes.fresh import LANGUAGES, fresh_scenes
from cogview_jax.shapes.judge import Verdict, judge, shares


def shapes_report(
    generate: Callable[[Sequence[str]], np.ndarray],
    reconstruct: Callable[[np.ndarray], np.ndarray],
    *,
    size: int,
    prompts: int,
    seed: int,
    score: Callable[[np.ndarray, Sequence[str]], np.ndarray] | None = None,
) -> dict:
    """Shares of pictures that are right, by attribute, for fresh prompts and beside the ceiling.

    Prompts alternate between English and Chinese and are drawn from `seed` alone. The ceiling is
    the judge on reconstructions of true drawings of the same scenes: no picture made of codes can
    be expected to do better.

    With `score`, what the best of several candidates reaches: of 1, 2, 4 ... up to all that
    `generate` draws for a prompt. A number below all takes the candidates in groups of that many,
    every group choosing its own best.

    Args:
        generate: prompts -> uint8 pictures [n, candidates, size, size, 3].
        reconstruct: uint8 pictures [n, size, size, 3] through the image tokenizer and back.
        size: rows and columns of a picture.
        prompts: how many for seen pairs of colour and shape, and how many for held-out ones.
        seed: of the scenes.
        score: pictures [n, size, size, 3] and their prompts -> float [n], lower for the better.

    Returns:
        {"seen" and "held_out": {"prompts": how many, "generated", "generated_en", "generated_zh",
        "ceiling", and with `score` "best_of_1", "best_of_2" ...: {attribute: share}}}. Without
        `score` all candidates count alike.
    """
    report = {}
    for fresh in fresh_scenes(prompts, seed):
        drawn = generate(fresh.texts)
        verdicts = [
            [judge(picture, scene) for picture in row]
            for row, scene in zip(drawn, fresh.scenes, strict=True)
        ]
        by_tongue = {
            f"generated_{tongue}": shares(_flat(verdicts, fresh.languages, tongue))
            for tongue in LANGUAGES
        }
        best = {}
        if score is not None:
            texts = [text for text in fresh.texts for _ in range(drawn.shape[1])]
            scores = score(drawn.reshape(-1, *drawn.shape[2:]), texts).reshape(drawn.shape[:2])
            best = _best_of(verdicts, scores)
        true = fresh.drawings(size)
        report[fresh.name] = {
            "prompts": prompts,
            "generated": shares(verdict for row in verdicts for verdict in row),
            **by_tongue,
            **best,
            "ceiling": shares(
                judge(picture, scene)
                for picture, scene in zip(reconstruct(true), fresh.scenes, strict=True)
            ),
        }
    return report


def table(report: Mapping[str, Mapping]) -> str:
    """The numbers of a report, by split and row, as lines for people."""
    rows = [
        (f"{split} {name}".replace("_", " "), row)
        for split, of_split in report.items()
        for name, row in of_split.items()
        if isinstance(row, Mapping)
    ]
    widths = {name: max(12, len(name) + 2) for name in rows[0][1]}
    heads = [f"{name.replace('_', ' '):>{width}}" for name, width in widths.items()]
    lines = [f"{'':24}" + "".join(heads)]
    for name, row in rows:
        cells = [f"{row[column]:{width}.3f}" for column, width in widths.items()]
        lines.append(f"{name:24}" + "".join(cells))
    return "\n".join(lines)


def _flat(verdicts: Sequence[Sequence[Verdict]], languages: Sequence[str], tongue: str) -> list:
    return [v for row, said in zip(verdicts, languages, strict=True) if said == tongue for v in row]


def _best_of(verdicts: Sequence[Sequence[Verdict]], scores: np.ndarray) -> dict[str, dict]:
    """{"best_of_K": shares} of the candidates with the lowest scores; scores [n, candidates]."""
    candidates, of, best = scores.shape[1], 1, {}
    while of <= candidates:
        groups = range(0, candidates - of + 1, of)
        best[f"best_of_{of}"] = shares(
            row[start + int(np.argmin(own[start : start + of]))]
            for row, own in zip(verdicts, scores, strict=True)
            for start in groups
        )
        of *= 2
    return best
