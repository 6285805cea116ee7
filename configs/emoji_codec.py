"""The image tokenizer of the embedded emoji: 64 pixels as 16 x 16 codes of 1,024.

    python -m cogview_jax.train --config configs/emoji_codec.py --workdir runs/emoji/codec
    python -m cogview_jax.train --config configs/emoji_codec.py:sharp --workdir runs/emoji/sharp \\
        --config.loss.perceptual=vgg16.ckpt

- `base` (the default) learns by the squared error, 10 minutes on two cores.
- `sharp` goes on with the decoder of `base` alone, as VQGAN does: a perceptual loss and a
  discriminator. The codes of all images stay as they are. `loss.perceptual` is the file with the
  weights of LPIPS; docs/guides/image_tokenizers.md says where to get it.
"""

from ml_collections import ConfigDict

VARIANTS = ("base", "sharp")


def get_config(variant: str = "base") -> ConfigDict:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r}: choose from {', '.join(VARIANTS)}")
    config = ConfigDict(
        {
            "stage": "image_tokenizer",
            "train": {
                "steps": 2500,
                "global_batch": 16,
                "log_every": 25,
                "checkpoint_every": 250,
                "sample_every": 500,
                "validate_every": 500,
            },
            "optimizer": {"lr": 1e-3, "beta2": 0.99, "weight_decay": 0.0, "warmup": 0.03},
            "model": {
                "image_size": 64,
                "downsampling": 4,
                "channels": (64, 128),
                "residual_blocks": 2,
                "codebook": 1024,
                "code_width": 64,
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
            },
            "data": {
                "source": {"kind": "emoji", "require_captions": False},
                # Few images: random parts of them, and their mirror images, are more.
                "smallest_crop": 0.75,
                "flip": True,
                "validation_share": 0.03,
            },
        }
    )
    if variant == "sharp":
        config.init_from = "runs/emoji/codec/bundle"
        config.train.update(steps=800, global_batch=8, checkpoint_every=100, sample_every=200)
        config.train.validate_every = 200
        config.optimizer.update(lr=4e-4, beta1=0.5)
        config.loss = {
            "kind": "vqgan",
            "decoder_only": True,
            "adversarial": {"start_step": 100, "weight": 0.2},
            "discriminator": {"channels": 32, "layers": 2},
        }
    return config
