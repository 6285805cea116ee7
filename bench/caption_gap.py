"""What captions of others cost a model of the embedded emoji, in nats an image.

  python -m bench.caption_gap --bundle runs/emoji --bundle runs/emoji/checkpoints/2000

Of images of both splits it measures the loss of their codes after the true English caption, after
that of another concept in the same style, and after that of the same concept in another style. What
another concept costs is what the model knows of what the caption says.
"""

import argparse
from collections.abc import Callable

import numpy as np

import cogview_jax
from cogview_jax.data import emoji_set
from cogview_jax.evaluation.sequence_loss import sequence_losses

#: How far on the other concept is, in the order of their numbers.
FURTHER = 77
#: Concept and style that a caption says, of an image that shows the two given.
CAPTIONS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "true caption": lambda concept, style: (concept, style),
    "other concept costs": lambda concept, style: (
        (concept + FURTHER) % len(emoji_set.concepts()),
        style,
    ),
    "other style costs": lambda concept, style: (concept, (style + 1) % len(emoji_set.STYLES)),
}


def caption(concept: int, style: int) -> str:
    """In English."""
    return emoji_set.caption(emoji_set.concepts()[concept], emoji_set.STYLES[style], "en")


def main() -> None:
    """Flags in, a table out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", action="append", required=True, help="repeat it")
    parser.add_argument("--images", type=int, default=32, help="of each split")
    options = parser.parse_args()
    print(f"| nats an image | {' | '.join(CAPTIONS)} |")
    print("|---" * (1 + len(CAPTIONS)) + "|")
    for path in options.bundle:
        model = cogview_jax.load(path)
        for split in emoji_set.SPLITS:
            order = np.random.default_rng(0).permutation(len(emoji_set.pairs(split)))
            pairs = [emoji_set.pairs(split)[i] for i in order[: options.images]]
            images = np.stack([emoji_set.tile(*pair) for pair in pairs])
            losses = []
            for said in CAPTIONS.values():
                nats, _ = sequence_losses(model, images, [caption(*said(*p)) for p in pairs], None)
                losses.append(nats[:, 1].mean())
            rows = [losses[0], *(loss - losses[0] for loss in losses[1:])]
            print(f"| {path}, {split} | {' | '.join(f'{nats:.1f}' for nats in rows)} |")


if __name__ == "__main__":
    main()
