"""CogView finetuned to a style: images of that style, all with one text, as in the paper.

    python -m cogview_jax.prepare --config configs/style.py:oil --workdir runs/oil \\
        --config.data.source.path=my_oil_paintings
    python -m cogview_jax.train --config configs/style.py:oil --workdir runs/oil
    python -m cogview_jax.sample --bundle runs/oil/bundle --task text_to_image \\
        --prompt "A lion of oil painting style" --out lions

The paper (Style Learning) takes 1,000 images of each of four styles, the variants `chinese`, `oil`,
`sketch` and `cartoon`, trains one model a style with the text "An image of {style} style", and
samples with "A {object} of {style} style". Rate, batch and steps are our choice. Another style:
`--config.data.source.caption="An image of pixel art style"`.

The same in minutes on two cores, from the shipped emoji model: 192 emoji with outlines, which it
has never seen. `emoji` finetunes all of it, `emoji_lora` adapters:

    examples/emoji/make.sh folder --out runs/style/data --size 64 --styles openmoji --embedded
    python -m cogview_jax.prepare --config configs/style.py:emoji_lora --workdir runs/style/lora \\
        --config.data.source.path=runs/style/data/train
    python -m cogview_jax.train --config configs/style.py:emoji_lora --workdir runs/style/lora
    python -m cogview_jax.evaluate --benchmark style --bundle runs/style/lora/bundle \\
        --real runs/style/data/held_out --prompt "{object} of outline style" --out style.json
"""

from ml_collections import ConfigDict

from cogview_jax.configs import cogview_4b, emoji

STYLES = {
    "chinese": "Chinese drawing",
    "oil": "oil painting",
    "sketch": "sketch",
    "cartoon": "cartoon",
}
EMOJI = ("emoji", "emoji_lora")
VARIANTS = (*STYLES, *EMOJI)
#: Concepts of which there is no image in the style.
OBJECTS = ("fox", "lion", "elephant", "grapes", "banana", "hamburger", "castle", "umbrella")


def get_config(variant: str) -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    if variant in EMOJI:
        return _emoji(lora=variant == "emoji_lora")
    config = cogview_4b.get_config()
    config.init_from = "runs/cogview/bundle"
    config.train.update(steps=1000, global_batch=128, checkpoint_every=250, sample_every=250)
    config.optimizer = {"lr": 3e-5}
    config.data.image_tokenizer = "runs/codec/bundle"
    config.data.text_tokenizer = "runs/cogview/tokens/tokenizers/text.model"
    config.data.source.update(path=f"styles/{variant}")
    config.data.source.caption = f"An image of {STYLES[variant]} style"
    return config


def _emoji(lora: bool) -> ConfigDict:
    config = emoji.get_config()
    config.init_from, config.data["from"] = "emoji", "emoji"  # the shipped bundle
    config.train.update(steps=200, log_every=20, checkpoint_every=50, sample_every=50)
    config.train.sample_prompts = tuple(f"{each} of outline style" for each in OBJECTS)
    config.optimizer = {"lr": 3e-4, "warmup": 0.1}
    config.sampling.temperature = 1.0  # the likeliest codes are those of the style, of no object
    if lora:
        config.train.steps = 100
        config.lora = {"rank": 8}
        config.optimizer.lr = 4e-3
    config.data.source = {
        "kind": "folder",
        "caption": "An image of outline style",
    }
    return config
