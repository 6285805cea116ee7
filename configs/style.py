"""The paper's CogView finetuned to a style: images of that style, all with one text.

    python -m cogview_jax.prepare --config configs/style.py:oil --workdir runs/oil \\
        --config.data.source.path=my_oil_paintings
    python -m cogview_jax.train --config configs/style.py:oil --workdir runs/oil
    python -m cogview_jax.sample --bundle runs/oil/bundle --task text_to_image \\
        --prompt "A lion of oil painting style" --out lions

The paper (Style Learning) takes 1,000 images of each of four styles, the variants `chinese`, `oil`,
`sketch` and `cartoon`, trains one model a style with the text "An image of {style} style", and
samples with "A {object} of {style} style". Rate, batch and steps are our choice. Another style:
`--config.data.source.caption="An image of pixel art style"`.
"""

from ml_collections import ConfigDict

from cogview_jax.configs import cogview_4b

STYLES = {
    "chinese": "Chinese drawing",
    "oil": "oil painting",
    "sketch": "sketch",
    "cartoon": "cartoon",
}
VARIANTS = tuple(STYLES)


def get_config(variant: str) -> ConfigDict:
    if variant not in STYLES:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(STYLES)}")
    config = cogview_4b.get_config()
    config.init_from = "runs/cogview/bundle"
    config.train.update(steps=1000, global_batch=128, checkpoint_every=250, sample_every=250)
    config.optimizer = {"lr": 3e-5}
    config.data.image_tokenizer = "runs/codec/bundle"
    config.data.text_tokenizer = "runs/cogview/tokens/tokenizers/text.model"
    config.data.source.update(path=f"styles/{variant}")
    config.data.source.caption = f"An image of {STYLES[variant]} style"
    return config
