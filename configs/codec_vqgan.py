"""A VQGAN image tokenizer: residual blocks, a perceptual loss and a discriminator.

    python -m cogview_jax.train --config configs/codec_vqgan.py --workdir runs/vqgan \\
        --config.data.source.path=my_images --config.loss.perceptual=vgg16.ckpt
    python -m cogview_jax.train --config configs/codec_vqgan.py:small --workdir runs/vqgan_small \\
        --config.data.source.path=my_images

- `base` (the default): 256 pixels as 16 x 16 codes of 16,384.
- `fashion`: 800 pixels as 50 x 50 codes of 8,192, for configs/fashion.py:paper.
- `small`: 64 pixels as 16 x 16 codes of 1,024, 20 minutes on two cores; without the perceptual
  loss, which `--config.loss.perceptual=FILE --config.loss.adversarial.perceptual_weight=1` adds.

`loss.perceptual` is the file with the weights of LPIPS; docs/guides/image_tokenizers.md says where
to get it. Held-out images, 1%, are measured with the same file, unless `train.validation_lpips`
names another. Sizes of `base` are those of Esser et al. 2021 (arXiv 2012.09841), codes on the unit
sphere those of LlamaGen (arXiv 2406.06525); the paper gives only the sizes of its images and codes.
"""

from ml_collections import ConfigDict

VARIANTS = ("base", "fashion", "small")


def get_config(variant: str = "base") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    config = ConfigDict(
        {
            "stage": "image_tokenizer",
            "train": {
                "steps": 250_000,
                "global_batch": 64,
                "log_every": 50,
                "checkpoint_every": 5000,
                "sample_every": 5000,
                "validate_every": 5000,
            },
            "optimizer": {
                "lr": 1e-4,
                "beta1": 0.5,
                "beta2": 0.9,
                "weight_decay": 0.0,
                "warmup": 0.01,
                "schedule": "constant",
            },
            "model": {
                "kind": "vqgan",
                "image_size": 256,
                "code_width": 8,
                # Unused codes are revived, so that no entropy loss over 16,384 codes is needed.
                "quantiser": {"kind": "cosine", "entropy_weight": 0.0},
            },
            "loss": {"kind": "vqgan", "adversarial": {"start_step": 20_000}},
            "data": {
                "source": {"kind": "folder", "require_captions": False},
                "smallest_crop": 0.8,
                "validation_share": 0.01,
            },
        }
    )
    if variant == "fashion":
        config.precision = "bfloat16"
        # As many codes as the paper's transformers have.
        config.model.update(image_size=800, codebook=8192)
        config.train.global_batch = 16
    if variant == "small":
        config.train.update(steps=600, global_batch=8, log_every=25, checkpoint_every=200)
        config.train.update(sample_every=200, validate_every=200)
        config.optimizer.update(lr=4e-4, beta1=0.9, beta2=0.99, warmup=0.03, schedule="cosine")
        config.model.update(
            image_size=64,
            codebook=1024,
            channels=32,
            multipliers=(1, 2, 4),
            blocks=1,
            attention=(2,),
            latent_channels=64,
            # With fewer channels in a group, the norms take more of an image's colours away.
            norm_groups=8,
        )
        config.loss.adversarial.update(perceptual_weight=0.0, start_step=400, weight=0.1)
        config.loss.discriminator = {"channels": 32, "layers": 2}
    return config
