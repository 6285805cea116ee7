"""A public VQGAN, trained on with one's own images of 256 pixels.

    python -m cogview_jax.convert --source taming --image_tokenizer last.ckpt --out bundles/taming
    python -m cogview_jax.train --config configs/codec_public.py:taming --workdir runs/codec \\
        --config.data.source.path=my_images --config.loss.perceptual=vgg16.ckpt

- `taming`: CompVis' VQGAN of ImageNet, 16 x 16 codes of 16,384 with 256 numbers each.
- `vqgan_jax`: dalle-mini's, of the same sizes.
- `llamagen`: LlamaGen's VQ-16, 16 x 16 codes of 16,384 on the unit sphere, with 8 numbers each.

Each starts from the bundle `bundles/VARIANT`, which `convert` made; `--config.init_from=DIR` names
another. For a token store or a transformer that was made with the public codes, train the decoder
alone: `--config.loss.decoder_only=True`. The rate is below that of the original training and the
steps are few, so that what the tokenizer knows of other images is kept. The discriminator is new:
during a long warm-up it learns before the decoder follows it far.
"""

from ml_collections import ConfigDict

from cogview_jax.configs import codec_vqgan

VARIANTS = ("taming", "vqgan_jax", "llamagen")


def get_config(variant: str) -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    config = codec_vqgan.get_config()
    config.init_from = f"bundles/{variant}"
    config.train.update(steps=10_000, checkpoint_every=1000, sample_every=1000, validate_every=1000)
    config.optimizer.update(lr=2e-5, warmup=0.1, schedule="cosine")
    config.loss.adversarial.start_step = 0
    if variant != "llamagen":
        # The loss that the released models were trained with.
        config.model.code_width = 256
        config.model.quantiser = {"kind": "learned", "codebook_weight": 0.25}
        config.loss.commitment = 1.0
    return config
