"""Draws what bundles make of prompts in a style that they have learned, a row of images each.

  python -m bench.style_figure --out runs/style/style.png \\
      "no finetuning=runs/emoji/bundle" "LoRA=runs/style/lora/bundle"

The last row has the true images.
"""

import argparse
from pathlib import Path

import numpy as np

import cogview_jax
from cogview_jax.data import emoji_set
from cogview_jax.data.sources.folder import FolderSource
from cogview_jax.evaluation.contact_sheet import caption_grid, titled
from cogview_jax.runtime.files import atomic_path

#: Of the concepts that are left out of the style.
CONCEPTS = ("fox", "elephant", "turtle", "grapes", "hamburger", "castle", "umbrella", "telephone")


def main() -> None:
    """Loads each bundle and writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+", metavar="TITLE=BUNDLE")
    parser.add_argument("--real", default="runs/style/data/held_out")
    parser.add_argument("--prompt", default="{object} of outline style")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/style/style.png")
    options = parser.parse_args()
    texts = [options.prompt.replace("{object}", concept) for concept in CONCEPTS]
    sheets = {}
    for given in options.bundles:
        title, _, bundle = given.rpartition("=")
        images = cogview_jax.load(bundle).generate(texts, seed=options.seed)
        made = [np.asarray(of_prompt[0]) for of_prompt in images]
        sheets[title] = caption_grid(made, texts, len(texts))
    source = FolderSource(options.real)
    true = {Path(source.key(number)).stem: source[number].image for number in range(len(source))}
    codes = {concept.en: concept.code for concept in emoji_set.concepts()}
    shown = [true[codes[concept]] for concept in CONCEPTS]
    sheets["true images"] = caption_grid(shown, CONCEPTS, len(CONCEPTS))
    with atomic_path(Path(options.out)) as temporary:
        titled(sheets).save(temporary)
    print(f"figure in {options.out}")


if __name__ == "__main__":
    main()
