"""The image tokenizer of Fashion-MNIST: 32 pixels as 8 x 8 codes of 512.

    python examples/fashion/make.py --out runs/fashion/data
    python -m cogview_jax.train --config configs/fashion_codec.py --workdir runs/fashion/codec

configs/fashion.py:small has the transformer. Pictures are neither cropped nor mirrored: there are
20,000, in one place and mostly facing one way.
"""

from ml_collections import ConfigDict

from cogview_jax.configs import small_codec


def get_config() -> ConfigDict:
    config = small_codec.get_config("64")
    config.model.update(image_size=32, downsampling=4, channels=(64, 128), codebook=512)
    config.data.source.path = "runs/fashion/data/train"
    config.data.update(smallest_crop=1.0, flip=False)
    return config
