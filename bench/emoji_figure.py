"""Draws what a model of the embedded emoji makes of concepts in all styles, for `make emoji`.

  python -m bench.emoji_figure --bundle runs/emoji/bundle --out runs/emoji/emoji.png

A row has two concepts, each in the four styles. The pairs of concept and style that training never
showed are marked; with --best_of N the best of N candidates by the CapLoss of --caption is shown.
"""

import argparse
from pathlib import Path

import numpy as np

import cogview_jax
from cogview_jax.data import emoji_set
from cogview_jax.evaluation.contact_sheet import caption_grid
from cogview_jax.runtime.files import atomic_path

#: Two rows of concepts in English, then two in Chinese.
CONCEPTS = ("butterfly", "fox", "sunflower", "rocket", "pizza", "cat face", "octopus", "castle")


def prompts() -> tuple[list[str], list[str]]:
    """What is asked for, concept by concept, and the captions of the figure."""
    texts, captions = [], []
    numbers = {concept.en: number for number, concept in enumerate(emoji_set.concepts())}
    for place, name in enumerate(CONCEPTS):
        language = "en" if place < len(CONCEPTS) // 2 else "zh"
        for style, described in enumerate(emoji_set.STYLES):
            concept = emoji_set.concepts()[numbers[name]]
            texts.append(emoji_set.caption(concept, described, language))
            held_out = emoji_set.is_held_out(numbers[name], style)
            captions.append(f"{texts[-1]}{' (held out)' if held_out else ''}")
    return texts, captions


def main() -> None:
    """Loads the bundle and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="runs/emoji/bundle")
    parser.add_argument("--caption", help="the caption bundle that chooses")
    parser.add_argument("--best_of", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/emoji/emoji.png")
    options = parser.parse_args()
    if options.best_of > 1 and options.caption is None:
        parser.error("--best_of needs the caption bundle that chooses: --caption BUNDLE")
    model, (texts, captions) = cogview_jax.load(options.bundle), prompts()
    codes = model.generate_codes(texts, options.best_of, options.seed)
    images = np.stack([model.decode(row) for row in codes])
    best = np.zeros(len(texts), int)
    if options.best_of > 1:
        scorer = cogview_jax.load(options.caption)
        repeated = [text for text in texts for _ in range(options.best_of)]
        scores = scorer.score(images.reshape(-1, *images.shape[2:]), repeated)
        best = np.argmin(scores.reshape(images.shape[:2]), axis=1)
    shown = images[np.arange(len(texts)), best]
    with atomic_path(Path(options.out)) as temporary:
        caption_grid(list(shown), captions, 2 * len(emoji_set.STYLES)).save(temporary)
    print(f"figure in {options.out}")


if __name__ == "__main__":
    main()
