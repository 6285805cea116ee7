"""The sizes and switches of the transformer."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from cogview_jax.models.conventions import CONVENTIONS, Conventions
from cogview_jax.runtime.config import require_range
from cogview_jax.runtime.errors import InputError

REMAT = ("none", "dots", "save-attention", "full")
ATTENTION = ("dense", "sparse")


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes and switches of a transformer; the defaults are those of the paper (4 billion).

    The paper is CogView (arXiv 2105.13290). Sandwich-LN and PB-relax are in its section 2.4.

    Attributes:
        layers: the number of layers.
        width: the length of a token's vector.
        heads: the number of attention heads, which has to divide the width.
        mlp_ratio: the width of the MLP as a multiple of the model's width.
        dropout: the dropout rate of the embeddings and of the output of each residual branch.
        attention_dropout: the dropout rate of attention weights; None means the rate of `dropout`.
            If it is 0, dense attention may be a fused kernel (`kernels.fused_attention`).
        sandwich_ln: whether each residual branch has a LayerNorm at both ends (Sandwich-LN) instead
            of at its start alone (Pre-LN).
        pb_relax_norm: whether LayerNorm first divides by the largest absolute value (PB-relax).
        pb_relax_attention: whether queries are divided by `alpha` before they are multiplied with
            keys (PB-relax, equation 4).
        alpha: the divisor of `pb_relax_attention`.
        embedding_gradient: the share of the gradient that reaches the word embeddings through the
            layers; 1 means all of it.
        epsilon: the number that LayerNorm adds to the variance.
        init_std: the standard deviation of the normal distribution that matrices and embeddings
            start from. The default 0.02 is about 1 / sqrt(width) at the paper's width; a narrow
            model needs more.
        sandwich_scale: the initial scale of the LayerNorm at the end of a branch. The paper's is 1,
            with which a new branch outweighs the embeddings; a short run has no time to mend that.
        remat: what the backward pass computes again instead of keeping it: "none", "dots",
            "save-attention" or "full" (`models.remat`).
        unroll: the number of layers in one iteration of the scan (`nn.scan(unroll=...)`). Unrolling
            all layers avoids copies of parameters in small models.
        compat: "none", or "official" to compute as the released PyTorch code does, for weights that
            were trained with it (`models.conventions`).
        attention: "dense", or "sparse" for three-region sparse attention
            (`models.sparse_attention`). In sparse attention a query sees its own block of `window`
            tokens, the `window_blocks` - 1 blocks before it, and the pivots of the row in all
            earlier blocks.
        window: the number of tokens in a block of sparse attention.
        window_blocks: the number of blocks in the window of sparse attention, including the block
            of the query.
        pivots: the number of pivots of a row in sparse attention, including all of its text.
    """

    #: The old names of settings, which bundles and runs of earlier versions use, and the new ones.
    RENAMED: ClassVar[Mapping[str, str]] = MappingProxyType({"init_deviation": "init_std"})

    layers: int = 48
    width: int = 2560
    heads: int = 40
    mlp_ratio: int = 4
    dropout: float = 0.1
    attention_dropout: float | None = None
    sandwich_ln: bool = True
    pb_relax_norm: bool = True
    pb_relax_attention: bool = True
    alpha: float = 32.0
    embedding_gradient: float = 0.1
    epsilon: float = 1e-5
    init_std: float = 0.02
    sandwich_scale: float = 1.0
    remat: str = "full"
    unroll: int = 1
    compat: str = "none"
    attention: str = "dense"
    window: int = 128
    window_blocks: int = 6
    pivots: int = 768

    def __post_init__(self):
        sizes = ("layers", "width", "heads", "mlp_ratio", "unroll")
        require_range(self, *sizes, "window", "window_blocks", "pivots", at_least=1, at_most=2**20)
        require_range(self, "dropout", "attention_dropout", at_least=0, below=1)
        require_range(self, "alpha", "init_std", above=0)
        require_range(self, "embedding_gradient", above=0, at_most=1)
        # A smaller epsilon is 0 in float32, and a token of equal values would be divided by it.
        require_range(self, "epsilon", at_least=1e-30, at_most=1)
        require_range(self, "sandwich_scale", at_least=0)
        if self.width % self.heads:
            raise InputError(
                f"model width {self.width} with {self.heads} heads: expected a multiple of them"
            )
        if self.remat not in REMAT:
            raise InputError(f"model remat {self.remat!r}: choose from {', '.join(REMAT)}")
        if self.compat not in CONVENTIONS:
            raise InputError(f"model compat {self.compat!r}: choose from {', '.join(CONVENTIONS)}")
        if self.attention not in ATTENTION:
            raise InputError(
                f"model attention {self.attention!r}: choose from {', '.join(ATTENTION)}"
            )
        if self.conventions.plain_gradients and (
            not self.sandwich_ln or self.pb_relax_attention or self.embedding_gradient != 1
        ):
            raise InputError(
                "model compat 'official': the released code has sandwich_ln, no pb_relax_attention,"
                " and an embedding_gradient of 1"
            )

    @property
    def conventions(self) -> Conventions:
        """The conventions that `compat` names."""
        return CONVENTIONS[self.compat]

    @property
    def weight_dropout(self) -> float:
        """The dropout rate of attention weights."""
        own = self.attention_dropout
        return self.dropout if own is None else own

    @property
    def sparse(self) -> bool:
        """Whether attention is three-region sparse attention."""
        return self.attention == "sparse"

    @property
    def hidden(self) -> int:
        """The width of the MLP."""
        return self.mlp_ratio * self.width

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.width // self.heads
