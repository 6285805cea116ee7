"""Rematerialisation: what a layer keeps for its backward pass, and what it computes again.

By the name in `TransformerConfig.remat`, from the most memory to the least (D a token and layer is
the width in numbers of the compute type):

- "none": everything is kept.
- "dots": the results of the products with weights are kept, and the attended values (10 D with an
  MLP of 4 D); norms, scores, softmax and GELU are computed again.
- "save-attention": what attention reads and what it gives (4 D: queries, keys, values, the attended
  values) is kept; norms, scores, the output projection and the MLP are computed again.
- "full": only a layer's input (D) is kept; the backward pass computes the whole layer again.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

#: Names of the values that a policy can keep: results of `Linear`, queries with keys and values,
#: and the attended values before their projection.
PRODUCT, READ, ATTENDED = "product", "read", "attended"
#: What jax calls the fused kernel (`models.fused_attention`). Its results, the attended values and
#: a number a query, are kept as they are: the values under a name alone would not save its backward
#: pass from running the kernel again.
FUSED = ("dot_product_attention_fwd", "dot_product_attention_fwd_wrapper")


def named(x: jax.Array, name: str) -> jax.Array:
    """`x` itself, under a name by which a policy knows it."""
    return checkpoint_name(x, name)


def checkpoint_policy(remat: str) -> Callable[..., Any]:
    """The policy of `jax.checkpoint` for a name of `TransformerConfig.remat` other than "none"."""
    policies = jax.checkpoint_policies
    if remat == "full":
        return policies.nothing_saveable
    named = {"dots": (PRODUCT, ATTENDED), "save-attention": (READ, ATTENDED)}[remat]
    return policies.save_from_both_policies(policies.save_only_these_names(*named), _fused)


def _fused(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in FUSED
