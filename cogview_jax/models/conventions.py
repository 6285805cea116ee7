"""How the released CogView model differs from this package; `TransformerConfig.compat` chooses.

Released weights are run in the way that they were trained. Everything that follows from that, in
the arithmetic and in how the weights are used, is one field here.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conventions:
    """How a transformer computes, and how images are upsampled with it.

    Attributes:
        tensor_norm: whether the LayerNorm of PB-relax divides by the largest absolute value of the
            whole tensor, instead of dividing each token by its own. Then a later token changes an
            earlier one, and one sample changes another, so no new model is trained this way.
        pivot_bias: whether sparse attention adds log(length / pivots) to the scores of pivots.
        plain_gradients: whether there is neither PB-relax of attention nor a smaller gradient of
            the word embeddings, while there is Sandwich-LN.
        windows_only: whether super-resolution goes by windows alone, over sequences of pretraining
            with the positions of the release, since the model has no layout of its own for it.
        upsampling_temperature: the temperature of super-resolution unless the caller gives one.
        upsampling_candidates: the candidates of each window unless the caller gives a number.
        back_projection_rounds: the rounds of back-projection unless the caller gives a number.
    """

    tensor_norm: bool
    pivot_bias: bool
    plain_gradients: bool
    windows_only: bool
    upsampling_temperature: float
    upsampling_candidates: int
    back_projection_rounds: int


#: What this package does. The low temperature makes candidates more likely, and likelier candidates
#: are better ones to choose among. Sixteen of them cost little: a token of the 4B model takes an
#: H200 an eighth longer for 16 rows than for one (docs/benchmarks.md).
OURS = Conventions(
    tensor_norm=False,
    pivot_bias=False,
    plain_gradients=False,
    windows_only=False,
    upsampling_temperature=0.7,
    upsampling_candidates=16,
    back_projection_rounds=8,
)
#: What the released PyTorch code does.
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
