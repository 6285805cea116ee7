"""Rematerialisation: what a layer keeps for its backward pass, and what it computes again.

These are the choices of `TransformerConfig.remat`, from the most memory to the least. D is the
width; memory is given in numbers of the compute type for each token and layer.

- "none": every intermediate result is kept.
- "dots": the results of the products with weights and the output of attention are kept (10 D with
  an MLP of 4 D). Norms, scores, softmax and GELU are computed again.
- "save-attention": the queries, keys, values and output of attention are kept (4 D). Norms, scores,
  the output projection and the MLP are computed again.
  Both keep two numbers for each head, of the softmax of attention in blocks.
- "full": only the input of the layer is kept (D). The backward pass computes the whole layer again.
"""

from collections.abc import Callable
from typing import Any

import jax

#: Names under which `checkpoint_name` marks the values that a policy can keep: the results of
#: `Linear`; the queries, keys and values; and the output of attention before its projection.
LINEAR_OUTPUT, QKV, ATTENTION_OUTPUT = "linear_output", "qkv", "attention_output"
#: What jax calls the fused kernel (`models.kernels.fused_attention`). Its two results are kept, the
#: output and one number for each query, because the output under a name alone would not save the
#: backward pass from running the kernel again.
FUSED_PRIMITIVES = ("dot_product_attention_fwd", "dot_product_attention_fwd_wrapper")


def checkpoint_policy(remat: str) -> Callable[..., Any]:
    """Returns the policy of `jax.checkpoint` for a choice of `TransformerConfig.remat`.

    Args:
        remat: any choice but "none", which needs no policy.
    """
    policies = jax.checkpoint_policies
    if remat == "full":
        return policies.nothing_saveable
    names = {"dots": (LINEAR_OUTPUT, ATTENTION_OUTPUT), "save-attention": (QKV, ATTENTION_OUTPUT)}
    by_name = policies.save_only_these_names(*names[remat])
    return policies.save_from_both_policies(by_name, _is_fused_attention)


def _is_fused_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in FUSED_PRIMITIVES
