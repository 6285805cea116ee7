"""What a model of the embedded emoji makes of prompts in other words than the captions.

  python -m bench.emoji_words --bundle emoji --features efficientnet-lite0-57934424.pth

For each form of a prompt, such as "a {colour} {concept} in {style} style", it generates images of
the same pairs of concept and style, which training has seen, and gives the shares whose concept,
style and colour are judged to be what the prompt asks for, or would ask for. A row whose prompts do
not name a style, or a colour, shows how often it is right by itself.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import cogview_jax
from cogview_jax.data import emoji_set
from cogview_jax.data.emoji_words import HUES, colour_of, wordings
from cogview_jax.evaluation.benchmark import ImageOptions
from cogview_jax.evaluation.benchmarks.fid import open_extractor
from cogview_jax.evaluation.captioned_sets import ArrayImages
from cogview_jax.evaluation.emoji_judge import EmojiJudge

#: Of each form its language, whether it names a colour, and its place in what `wordings` gives.
FORMS = {
    "butterfly in flat style": ("en", False, 0),
    "a butterfly in flat style": ("en", False, 1),
    "a butterfly": ("en", False, 2),
    "a blue butterfly in flat style": ("en", True, 0),
    "a blue butterfly": ("en", True, 1),
    "蝴蝶": ("zh", False, 1),
    "扁平风格的蓝色蝴蝶": ("zh", True, 0),
}


def main() -> None:
    """Flags in, a table out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", action="append", required=True, help="repeat it")
    parser.add_argument("--features", help="weights of EfficientNet-Lite0; without, pixels judge")
    parser.add_argument("--images", type=int, default=128, help="of each form")
    options = parser.parse_args()
    # In high contrast nothing has a colour.
    pairs = [pair for pair in emoji_set.pairs("train") if pair[1] != len(emoji_set.STYLES) - 1]
    order = np.random.default_rng(0).permutation(len(pairs))[: options.images]
    asked = [(*pairs[i], HUES[n % len(HUES)]) for n, i in enumerate(order)]
    extractor = None
    if options.features:
        given = {"efficientnet_lite0": options.features}
        extractor = open_extractor(ImageOptions(features=given))
    print("| bundle | prompts like | concept | style | colour |\n|---|---|---|---|---|")
    for path in options.bundle:
        model = cogview_jax.load(path)
        with tempfile.TemporaryDirectory() as folder:
            judge = EmojiJudge(emoji_set.TILE, extractor, Path(folder))
            for number, (form, (language, is_coloured, place)) in enumerate(FORMS.items()):
                texts = [
                    wordings(
                        emoji_set.concepts()[concept],
                        emoji_set.STYLES[style],
                        language,
                        colour if is_coloured else None,
                        own=not is_coloured,
                    )[place]
                    for concept, style, colour in asked
                ]
                images = model.decode(model.generate_codes(texts)[:, 0])
                features = judge.features(ArrayImages(images, form), f"form_{number}")
                judged = judge(features)
                right = [
                    np.mean(judged.concepts == [concept for concept, *_ in asked]),
                    np.mean(judged.styles == [style for _, style, _ in asked]),
                    np.mean(
                        [
                            colour_of(image, emoji_set.STYLES[style]) == colour
                            for image, (_, style, colour) in zip(images, asked, strict=True)
                        ]
                    ),
                ]
                shares = " | ".join(f"{share:.3f}" for share in right)
                print(f"| {path} | {form} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
