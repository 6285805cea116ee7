"""A transformer of the embedded emoji: captions in two languages to 8 x 8 codes.

    python -m cogview_jax.train --config configs/emoji_codec.py --workdir runs/emoji/codec
    python -m cogview_jax.prepare --config configs/emoji.py --workdir runs/emoji
    python -m cogview_jax.train --config configs/emoji.py --workdir runs/emoji

- `base` (the default): an hour on two cores.
- `small`: fewer steps, some 20 minutes.
- `words`: goes on from the run runs/emoji with articles, colours and captions without a style, in
  some 15 minutes:

    python -m cogview_jax.prepare --config configs/emoji.py:words --workdir runs/emoji/words
    python -m cogview_jax.train --config configs/emoji.py:words --workdir runs/emoji/words
"""

from ml_collections import ConfigDict

from cogview_jax.configs import small

VARIANTS = ("base", "small", "words")
#: Concepts in all styles, of each of which training does not see one, and the other language.
SAMPLES = (
    "butterfly in Noto style",
    "butterfly in flat style",
    "butterfly in 3D style",
    "butterfly in high contrast style",
    "fox in Noto style",
    "fox in flat style",
    "fox in 3D style",
    "fox in high contrast style",
    "Noto风格的向日葵",
    "扁平风格的向日葵",
    "立体风格的向日葵",
    "高对比度风格的向日葵",
)


#: The same in the words that only `words` knows, and things in colours that are not their own.
MORE_SAMPLES = (
    "a blue butterfly in flat style",
    "a butterfly",
    "a red fox in 3D style",
    "a fox",
    "a green automobile in Noto style",
    "a purple rose in 3D style",
    "a pink elephant",
    "a yellow castle in flat style",
    "扁平风格的蓝色蝴蝶",
    "红色向日葵",
    "立体风格的绿色猫",
    "向日葵",
)


def get_config(variant: str = "base") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    config = small.get_config("64")
    config.train.update(sample_prompts=SAMPLES, validate_every=0)
    # With more pieces some are whole captions in Chinese, which say nothing of others.
    config.vocabulary.text = config.data.text.pieces = 1500
    config.data.text.character_coverage = 1.0
    config.layout.text_length = 16
    # What is held out is the quarter of the pairs that the source's split leaves out.
    config.data.update(validation_share=0.0, source={"kind": "emoji"})
    config.data.update(views=16, smallest_crop=0.85, largest_crop=1.2, flip=True)
    config.data["from"] = "runs/emoji/codec"
    if variant == "small":
        config.train.update(steps=5000, sample_every=1000)
    if variant == "words":
        config.init_from, config.data["from"] = "runs/emoji/bundle", "runs/emoji"
        config.train.update(steps=3000, sample_every=1000, sample_prompts=MORE_SAMPLES)
        config.optimizer.lr = 1e-3
        config.data.source.more_words = True
    return config
