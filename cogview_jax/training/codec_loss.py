"""The losses of stage 1: the section `loss` of a config.

A new loss is a kind here, and the objective that `tasks.codec` makes of it.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from cogview_jax.models.networks.discriminator import DiscriminatorConfig
from cogview_jax.runtime.config import Tagged
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import require_paths
from cogview_jax.tokenizers.quantisers.quantiser import CodebookTraining
from cogview_jax.training.adversarial import AdversarialConfig


@dataclass(frozen=True, kw_only=True)
class CodecLoss(CodebookTraining, Tagged):
    """The loss of an image tokenizer, and how its codebook learns. Without `kind` it is `l2`.

    Attributes:
        kind: which loss; a subclass fixes it, as `Literal`.
        decoder_only: train what comes after the codes alone, so that the codes of all images stay
            those of the bundle in `init_from`. The settings of the codebook then do nothing.
    """

    default_kind: ClassVar[str | None] = "l2"

    kind: str
    decoder_only: bool = False


@dataclass(frozen=True, kw_only=True)
class L2Loss(CodecLoss):
    """The mean squared error of normalised pixels, plus the quantiser's loss."""

    kind: Literal["l2"] = "l2"


@dataclass(frozen=True, kw_only=True)
class VQGANLoss(CodecLoss):
    """Reconstruction, a perceptual distance and a discriminator, plus the quantiser's loss.

    Attributes:
        perceptual: the file with the weights of LPIPS (see docs/guides/image_tokenizers.md). A run
            needs it unless adversarial.perceptual_weight is 0.
        adversarial: the terms and their weights.
        discriminator: sizes of the discriminator.
    """

    kind: Literal["vqgan"] = "vqgan"
    perceptual: str = ""
    adversarial: AdversarialConfig = AdversarialConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_paths(self, "perceptual")

    def check_accumulation(self, accumulate: int) -> None:
        """Refuses parts of a batch where the loss is of the whole batch.

        Raises:
            InputError: BatchNorm's statistics would be those of a part.
        """
        if accumulate == 1:
            return
        if self.discriminator.norm in ("batch", "actnorm"):
            raise InputError(
                f"train.accumulate = {accumulate}: loss.discriminator.norm ="
                f" {self.discriminator.norm!r} needs the whole batch; choose group or none, or set"
                " train.accumulate to 1"
            )
