"""`compat` decides the conventions, and forbids settings that the release does not have."""

import dataclasses

import pytest

from cogview_jax.models.block import make_norm
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.conventions import OURS, RELEASE
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import FLOAT32

PLAIN = TransformerConfig(pb_relax_attention=False, embedding_gradient=1.0)
OFFICIAL = dataclasses.replace(PLAIN, compat="official")


def test_compat_chooses_them():
    assert (PLAIN.conventions, OFFICIAL.conventions) == (OURS, RELEASE)
    with pytest.raises(InputError, match="compat 'theirs': choose from none, official"):
        dataclasses.replace(PLAIN, compat="theirs")


@pytest.mark.parametrize(
    "switches",
    [{"sandwich_ln": False}, {"pb_relax_attention": True}, {"embedding_gradient": 0.1}],
)
def test_the_release_has_no_such_model(switches):
    dataclasses.replace(PLAIN, **switches)
    with pytest.raises(InputError, match="model compat 'official': the released code has"):
        dataclasses.replace(OFFICIAL, **switches)


def test_its_norm_looks_at_the_whole_tensor():
    assert make_norm(PLAIN, FLOAT32).relax == "row"
    assert make_norm(OFFICIAL, FLOAT32).relax == "tensor"
