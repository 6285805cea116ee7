"""A config refuses sizes that no transformer can have, with a message."""

import pytest

from cogview_jax.models.config import TransformerConfig
from cogview_jax.runtime.errors import InputError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"layers": 0}, "layers = 0"),
        ({"heads": 0}, "heads = 0"),
        ({"width": 0}, "width = 0"),
        ({"width": 100, "heads": 3}, "width 100 with 3 heads"),
        ({"dropout": 1.0}, "dropout = 1.0"),
        ({"dropout": -0.1}, "dropout = -0.1"),
        ({"attention_dropout": 1.0}, "attention_dropout = 1.0"),
        ({"embedding_gradient": 0.0}, "embedding_gradient = 0.0"),
        ({"embedding_gradient": 1.5}, "embedding_gradient = 1.5"),
        ({"remat": "some"}, "'some': choose from none, dots, save-attention, full"),
        ({"alpha": 0.0}, "alpha = 0.0"),
        ({"mlp_ratio": 0}, "mlp_ratio = 0"),
        ({"unroll": 0}, "unroll = 0"),
    ],
    ids=str,
)
def test_meaningless_sizes_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        TransformerConfig(**setting)
