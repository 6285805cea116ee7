"""Sizes and switches of the transformer."""

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
    """Sizes and switches of a transformer; the defaults are those of the paper (4 billion).

    Attributes:
        layers: how many layers there are.
        width: numbers of a token's vector.
        heads: attention heads, which divide the width.
        mlp_ratio: width of the MLP over the model's.
        dropout: rate of dropout of the embeddings and of what each branch adds.
        attention_dropout: rate of dropout of attention's weights; None for the same. Where it is 0
            and the device has one, dense attention is a fused kernel (`kernels.fused_attention`).
        sandwich_ln: a LayerNorm at both ends of each branch (Sandwich-LN), not at the first alone.
        pb_relax_norm: LayerNorm divides by the largest value first (PB-relax).
        pb_relax_attention: attention scores are divided by alpha before their product (PB-relax).
        alpha: belongs to pb_relax_attention.
        embedding_gradient: share of the gradient that reaches the word embeddings through the
            layers; 1 for all.
        epsilon: added to the variance in LayerNorm.
        init_std: standard deviation of the normal that matrices and embeddings start from.
            0.02 is about 1 / sqrt(width) at the paper's width; a narrow model wants more.
        sandwich_scale: start of the scale of the LayerNorm that closes a branch. At 1, the paper's,
            a new branch outweighs the embeddings, which a short run has no time to mend.
        remat: what the backward pass computes again instead of keeping it: "none", "dots",
            "save-attention" or "full" (`models.remat`).
        unroll: layers per scan iteration (`nn.scan(unroll=...)`); unrolling all of them avoids
            parameter copies in small models.
        compat: "official" computes as the released PyTorch code does, for weights that were trained
            with it (`models.conventions`).
        attention: "dense", or "sparse" for the three-region form (`models.sparse_attention`): a
            query sees its own block of `window` tokens, the window_blocks - 1 blocks before it, and
            of what lies further back the row's pivots.
        window: tokens of a block of sparse attention.
        window_blocks: blocks of the window of sparse attention, a query's own among them.
        pivots: pivots of a row in sparse attention, all text among them.
    """

    #: Names of settings in bundles and runs of earlier versions, and what they are called now.
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
        # Smaller ones are 0 in float32, and a token whose values are all alike is divided by it.
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
        """What follows from `compat`."""
        return CONVENTIONS[self.compat]

    @property
    def drop_rates(self) -> tuple[float, float]:
        """Of embeddings and branches, and of attention's weights."""
        own = self.attention_dropout
        return self.dropout, self.dropout if own is None else own

    @property
    def sparse(self) -> bool:
        """Whether attention is three-region sparse attention."""
        return self.attention == "sparse"

    @property
    def hidden(self) -> int:
        """Width of the MLP."""
        return self.mlp_ratio * self.width

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads
