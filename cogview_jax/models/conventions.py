"""In what the CogView release differs from this package: a value, chosen by `model.compat`.

Released weights are run as they were trained; everything that follows from that, in the arithmetic
and in how the weights are used, is one field here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conventions:
    """How a transformer computes, and how images are upsampled with it.

    Attributes:
        tensor_norm: PB-relax's LayerNorm divides by the largest absolute value of the whole tensor,
            and not of each token by its own. A later token then changes an earlier one, and one
            sample another, so nothing is trained this way.
        pivot_bias: sparse attention adds log(length / pivots) to the scores of pivots.
        plain_gradients: there is neither PB-relax of attention nor a smaller gradient of the word
            embeddings, while there is Sandwich-LN.
        windows_only: super-resolution is done by windows alone, over sequences of pretraining with
            the positions of the release, since the model has no layout of its own for it.
        upsampling_temperature: temperature of super-resolution unless the caller says.
        upsampling_candidates: candidates of each window unless the caller says.
        back_projection_rounds: rounds of back-projection unless the caller says.
    """

    tensor_norm: bool
    pivot_bias: bool
    plain_gradients: bool
    windows_only: bool
    upsampling_temperature: float
    upsampling_candidates: int
    back_projection_rounds: int


#: Candidates that are more likely are better ones to choose among; a token of the 4B model for 16
#: rows takes an H200 an eighth longer than for one (docs/benchmarks.md).
OURS = Conventions(
    tensor_norm=False,
    pivot_bias=False,
    plain_gradients=False,
    windows_only=False,
    upsampling_temperature=0.7,
    upsampling_candidates=16,
    back_projection_rounds=8,
)
RELEASE = Conventions(
    tensor_norm=True,
    pivot_bias=True,
    plain_gradients=True,
    windows_only=True,
    upsampling_temperature=1.02,
    upsampling_candidates=1,
    back_projection_rounds=0,
)
#: The choices of `TransformerConfig.compat`.
CONVENTIONS = {"none": OURS, "official": RELEASE}
