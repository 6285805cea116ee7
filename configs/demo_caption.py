"""The demo's transformer finetuned to caption images, minutes on two cores.

After `make demo`, from whose token store it learns:

    python -m cogview_jax.train --config configs/demo_caption.py --workdir runs/demo/caption
"""

from ml_collections import ConfigDict

from cogview_jax.configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.init_from = "runs/demo/bundle"
    config.layout.task = "caption"
    config.text_weight = 10.0  # few of the tokens, and all that is asked for
    config.train.update(steps=5000, global_batch=8, log_every=100, checkpoint_every=500)
    config.train.sample_every = 0
    config.optimizer.muon_lr = 0.0
    config.data.store = "runs/demo/tokens"
    return config
