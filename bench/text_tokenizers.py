"""Compares sizes of text tokenizers on captions of one's own: how many tokens a caption takes.

  python -m bench.text_tokenizers --captions captions.txt --pieces 2000 8000 16000

Every 50th caption is held out, and all numbers are of these. Captions with Chinese characters are
counted apart. "in bytes" is the share of characters that have no piece: each takes several tokens,
and a transformer sees too few of them to learn what they mean.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

from cogview_jax.tokenizers.text import TextConfig, TextTokenizer, train_text_tokenizer

HELD_OUT = 50
_CHINESE = re.compile(r"[\u3400-\u9fff]")


def measure(text: TextTokenizer, captions: Sequence[str]) -> dict[str, float]:
    """Tokens per caption, characters per token, and the share of characters written in bytes."""
    lengths = [len(text.encode(caption)) for caption in captions]
    characters = sum(len(caption) for caption in captions)
    return {
        "tokens": sum(lengths) / len(captions),
        "characters a token": characters / sum(lengths),
        "in bytes": text.unknown_share(captions),
        "longest": max(lengths),
    }


def main() -> None:
    """Trains a tokenizer of each size and prints a row for each language."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=Path, required=True, help="a file, one caption a line")
    parser.add_argument("--pieces", type=int, nargs="+", default=[2000, 8000, 16_000])
    parser.add_argument("--algorithm", choices=["unigram", "bpe"], default="unigram")
    parser.add_argument("--coverage", type=float, default=0.9995)
    options = parser.parse_args()
    lines = options.captions.read_text(encoding="utf-8").splitlines()
    captions = [" ".join(line.split()) for line in lines if line.strip()]
    held_out = captions[::HELD_OUT]
    trained = [caption for i, caption in enumerate(captions) if i % HELD_OUT]
    kinds = {
        "Chinese": [caption for caption in held_out if _CHINESE.search(caption)],
        "other": [caption for caption in held_out if not _CHINESE.search(caption)],
    }
    print(f"{len(trained):,} captions to train on, {len(held_out):,} held out")
    for pieces in options.pieces:
        start = time.perf_counter()
        text = train_text_tokenizer(
            trained, TextConfig(pieces, options.algorithm, options.coverage)
        )
        took = time.perf_counter() - start
        for kind, some in kinds.items():
            if some:
                row = "  ".join(
                    f"{name} {value:8.4g}" for name, value in measure(text, some).items()
                )
                print(f"{len(text):7,} pieces  {kind:8}{row}  trained in {took:.0f} s", flush=True)


if __name__ == "__main__":
    main()
