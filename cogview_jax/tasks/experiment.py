"""What a config file says, checked once: a frozen dataclass for each of the two stages."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cogview_jax.data.sources.source import SourceConfig
from cogview_jax.models.config import TransformerConfig
from cogview_jax.runtime.config import build, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig
from cogview_jax.runtime.paths import require_paths
from cogview_jax.runtime.precision import policy
from cogview_jax.tokenizers.codec import CodecConfig
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.text import TextConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.loss_scale import LossScaleConfig
from cogview_jax.training.optimizer import OptimizerConfig
from cogview_jax.training.profiler import ProfileConfig


@dataclass(frozen=True)
class TrainConfig:
    """How long and in what portions.

    accumulate: into how many parts a batch is cut, one after the other on the device.
    sample_every: steps between drawings into samples/, 0 for none. keep: how many of the newest
    checkpoints stay; besides those every keep_every-th step (0: none) and the keep_best with the
    lowest best_metric, a name in metrics.jsonl.
    """

    steps: int
    global_batch: int
    accumulate: int = 1
    log_every: int = 10
    checkpoint_every: int = 1000
    sample_every: int = 0
    keep: int = 2
    keep_every: int = 0
    keep_best: int = 0
    best_metric: str = "loss"

    def __post_init__(self):
        positive = ("steps", "global_batch", "accumulate", "log_every", "checkpoint_every", "keep")
        require_range(self, *positive, at_least=1)
        require_range(self, "sample_every", "keep_every", "keep_best", at_least=0)
        if self.global_batch % self.accumulate:
            raise InputError(
                f"global_batch {self.global_batch} cannot be cut into accumulate ="
                f" {self.accumulate} equal parts"
            )


@dataclass(frozen=True)
class PictureData:
    """Pictures for the image tokenizer.

    smallest_crop, flip: augmentation, see `SquareView`. max_skipped: the share of records that may
    be unreadable.
    """

    source: SourceConfig
    smallest_crop: float = 1.0
    flip: bool = False
    max_skipped: float = 0.05

    def __post_init__(self):
        require_range(self, "smallest_crop", above=0, at_most=1)
        require_range(self, "max_skipped", at_least=0, at_most=1)


@dataclass(frozen=True)
class CodecLoss:
    """See `CodecObjective`."""

    commitment: float = 0.25
    decay: float = 0.99
    revive_below: float = 0.03

    def __post_init__(self):
        require_range(self, "commitment", at_least=0)
        require_range(self, "decay", "revive_below", at_least=0, below=1)


@dataclass(frozen=True)
class CodecExperiment:
    """Stage 1: an image tokenizer from pictures."""

    stage: Literal["image_tokenizer"]
    train: TrainConfig
    data: PictureData
    model: CodecConfig = CodecConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: CodecLoss = CodecLoss()
    mesh: MeshConfig = MeshConfig()
    precision: str = "float32"
    loss_scale: LossScaleConfig = LossScaleConfig()
    profile: ProfileConfig = ProfileConfig()
    seed: int = 0
    init_from: str = ""

    def __post_init__(self):
        require_range(self, "seed", at_least=0, below=2**32)
        require_paths(self, "init_from")
        policy(self.precision)


@dataclass(frozen=True)
class TokenData:
    """Where a transformer's tokens come from, and how `prepare` makes them.

    store: the token store; empty is WORKDIR/tokens. A file is a compact binary of the release
    (`data.compact_binary`), trained on as it is with the two tokenizers named here. source: the
    captioned pictures. image_tokenizer: the bundle whose codec reads them. text_tokenizer: a
    SentencePiece model; empty trains one, as `text` says, on the captions of the first
    `text_records` records. picture_grid: rows and columns of the codes of whole pictures, of the
    larger one where there are two, if training is to cut windows of layout.grid out of them; 0
    where pictures are of layout.grid. encode_precision: of the codec's encoder, whatever the
    training's precision is; another one finds other codes.
    """

    source: SourceConfig
    store: str = ""
    image_tokenizer: str = ""
    text_tokenizer: str = ""
    text: TextConfig = TextConfig()
    text_records: int = 1_000_000
    encode_batch: int = 64
    encode_precision: Literal["float32", "bfloat16", "float16"] = "float32"
    picture_grid: int = 0
    shard_size: int = 8192
    max_skipped: float = 0.05

    def __post_init__(self):
        require_paths(self, "store", "image_tokenizer", "text_tokenizer")
        require_range(self, "text_records", "shard_size", at_least=1)
        require_range(self, "encode_batch", at_least=1, at_most=2**16)
        require_range(self, "picture_grid", at_least=0, at_most=2**10)
        require_range(self, "max_skipped", at_least=0, at_most=1)
        if not self.source.require_captions:
            raise InputError(
                "source.require_captions is False, but a transformer learns from captions"
            )


@dataclass(frozen=True)
class TransformerExperiment:
    """Stage 2: a transformer over captions and codes.

    text_weight: what a text token weighs in the loss, an image token being 1. prompt_weight: what
    tokens before the sequence's last part weigh beside those from there on; with 0 only what
    sampling draws is learned. drop_captions: the share of rows whose text is left out, so that
    guidance has something to compare with. code_embeddings: what those of the image codes start
    from in a run without init_from: "normal", as all others do, or "codec", its own vectors
    (`models.code_embeddings`).
    """

    stage: Literal["transformer"]
    train: TrainConfig
    data: TokenData
    model: TransformerConfig = TransformerConfig()
    vocabulary: Vocabulary = Vocabulary()
    layout: LayoutConfig = LayoutConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    text_weight: float = 1.0
    prompt_weight: float = 1.0
    drop_captions: float = 0.0
    code_embeddings: Literal["normal", "codec"] = "normal"
    mesh: MeshConfig = MeshConfig()
    precision: str = "float32"
    loss_scale: LossScaleConfig = LossScaleConfig()
    profile: ProfileConfig = ProfileConfig()
    seed: int = 0
    init_from: str = ""

    @property
    def picture_grids(self) -> list[int]:
        """Rows and columns of the codes of a whole picture, one a region of images."""
        whole = self.data.picture_grid or self.layout.grid
        images = make_layout(self.layout, self.vocabulary).images
        return [region.grid * whole // self.layout.grid for region in images]

    def __post_init__(self):
        whole, window = self.data.picture_grid, self.layout.grid
        odd = self.layout.task == "super_resolution" and whole % 2
        if whole and (whole < window or odd):
            raise InputError(
                f"data.picture_grid {whole} with layout.grid {window}: expected at least that, and"
                " an even number for super_resolution, or 0 for the same"
            )
        require_range(self, "drop_captions", at_least=0, at_most=1)
        require_range(self, "text_weight", "prompt_weight", at_least=0)
        require_range(self, "seed", at_least=0, below=2**32)
        require_paths(self, "init_from")
        policy(self.precision)
        make_layout(self.layout, self.vocabulary)
        if self.text_weight == self.prompt_weight == 0 and self.layout.task == "caption":
            raise InputError(
                "text_weight and prompt_weight are both 0: nothing of a caption model is learned;"
                " expected one above 0"
            )
        if self.drop_captions and self.layout.task == "caption":
            raise InputError(
                f"drop_captions {self.drop_captions}: a caption model learns nothing without them;"
                " set it to 0"
            )
        if self.model.official:
            raise InputError(
                "model.compat 'official' lets later tokens change earlier ones and is for running"
                " released weights; to finetune them name their bundle in init_from and leave"
                " model.compat 'none'"
            )
        if self.train.sample_every and self.layout.task != "text_to_image":
            raise InputError(
                f"train.sample_every {self.train.sample_every}: a model of layout.task"
                f" {self.layout.task!r} draws no pictures; set it to 0"
            )


STAGES = {"image_tokenizer": CodecExperiment, "transformer": TransformerExperiment}
Experiment = CodecExperiment | TransformerExperiment


def experiment_type(config: Mapping[str, Any]) -> type[Experiment]:
    """The class of experiment that a config describes, which has the settings and their defaults.

    Raises:
        InputError: the config is no section, or has no known stage.
    """
    if not hasattr(config, "keys"):
        raise InputError(f"config is a {type(config).__name__}, expected a section with a stage")
    stage = config.get("stage")
    if not isinstance(stage, str) or stage not in STAGES:
        raise InputError(f"config.stage = {repr(stage)[:60]}: choose from {', '.join(STAGES)}")
    return STAGES[stage]


def read_experiment(config: Mapping[str, Any]) -> Experiment:
    """The experiment a config describes; InputError names an unknown, missing or wrong key."""
    return build(experiment_type(config), config)
