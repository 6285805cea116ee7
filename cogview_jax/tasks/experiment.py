"""The schema of configs: frozen, validated dataclasses for each of the two stages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import jax

from cogview_jax.checkpoints.bundle_folder import require_bundles
from cogview_jax.data.filters import FilterConfig
from cogview_jax.data.sources.mixture import check_names
from cogview_jax.data.sources.mixture_config import MixedStore, SourceMixture
from cogview_jax.data.sources.source import SourceConfig
from cogview_jax.data.transforms import Crop
from cogview_jax.models.config import TransformerConfig
from cogview_jax.models.implementation import (
    Implementation,
    ImplementationConfig,
    choose_implementation,
)
from cogview_jax.models.lora import LoRAConfig
from cogview_jax.runtime.config import SettingError, build, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig
from cogview_jax.runtime.paths import require_paths
from cogview_jax.runtime.precision import policy
from cogview_jax.sampling.options import SamplingSettings
from cogview_jax.tasks.train_config import CodecTrainConfig, TransformerTrainConfig
from cogview_jax.tokenizers.codecs.codec import CodecConfig
from cogview_jax.tokenizers.codecs.vqvae import VQVAEConfig
from cogview_jax.tokenizers.layout import LayoutConfig, make_layout
from cogview_jax.tokenizers.text import TextConfig
from cogview_jax.tokenizers.vocabulary import Vocabulary
from cogview_jax.training.codec_loss import CodecLoss, L2Loss, VQGANLoss
from cogview_jax.training.loss_scale import LossScaleConfig
from cogview_jax.training.optimizer import OptimizerConfig
from cogview_jax.training.profiler import ProfileConfig


@dataclass(frozen=True)
class ImageData:
    """Images for the image tokenizer.

    Attributes:
        source: where they come from.
        filter: which of them are left out.
        crop: how an image becomes a square: "center" takes its central square, "random" one at a
            random place, "pad" shows all of it on white paper. Held-out images and previews show
            the centre in place of a random square.
        smallest_crop: 1 takes squares of the whole of the shorter side; a smaller share takes
            random squares whose side is between this share and the whole of the shorter side.
        flip: mirror half of the images. Off by default, since captions say left and right.
        max_skipped: the share of records that may be unreadable.
        validation_share: the share of records that are held out: training never reads them, and the
            image tokenizer is measured on them. Their numbers alone decide which these are.
    """

    source: SourceConfig
    filter: FilterConfig = FilterConfig()
    crop: Crop = "center"
    smallest_crop: float = 1.0
    flip: bool = False
    max_skipped: float = 0.05
    validation_share: float = 0.0

    def __post_init__(self):
        require_range(self, "smallest_crop", above=0, at_most=1)
        require_range(self, "validation_share", at_least=0, below=1)
        require_range(self, "max_skipped", at_least=0, at_most=1)
        if self.crop == "pad" and self.smallest_crop < 1:
            raise SettingError(
                f"crop = 'pad' shows whole images, but smallest_crop = {self.smallest_crop} takes"
                " parts of them: set smallest_crop = 1, or another crop"
            )

    @property
    def parts(self) -> list[str]:
        """The names of the parts of a mixture; none of another source."""
        return sorted(self.source.parts) if isinstance(self.source, SourceMixture) else []


@dataclass(frozen=True)
class CodecExperiment:
    """Stage 1: an image tokenizer from images.

    Attributes:
        stage: the value that selects an image tokenizer.
        train: steps, batch, checkpoints.
        data: the images.
        model: the image tokenizer: its architecture, its quantiser, its sizes.
        optimizer: rate, schedule, decay.
        loss: weights of the loss, and how the codebook learns.
        mesh: how devices are divided.
        precision: types of the arithmetic: float32, bfloat16, float16 or float16_pure.
        loss_scale: used only with float16 policies.
        profile: which steps are profiled.
        seed: of all random numbers of the run, 0 to 2^32 - 1.
        init_from: the bundle whose image tokenizer training starts from; empty for none.
    """

    stage: Literal["image_tokenizer"]
    train: CodecTrainConfig
    data: ImageData
    model: CodecConfig = VQVAEConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: CodecLoss = L2Loss()
    mesh: MeshConfig = MeshConfig()
    precision: str = "float32"
    loss_scale: LossScaleConfig = LossScaleConfig()
    profile: ProfileConfig = ProfileConfig()
    seed: int = 0
    init_from: str = ""

    def __post_init__(self):
        require_range(self, "seed", at_least=0, below=2**32)
        require_bundles(self, "init_from")
        policy(self.precision)
        if self.loss.decoder_only and not self.init_from:
            raise InputError(
                "loss.decoder_only keeps the codes of a trained image tokenizer, but init_from is"
                " empty: name its bundle there, or set loss.decoder_only to False"
            )
        _check_validation(self.train.validate_every, self.data.validation_share, "images")
        if isinstance(self.loss, VQGANLoss):
            self.loss.check_accumulation(self.train.accumulate)
            if {*self.model.mean, *self.model.std} != {0.5}:
                raise InputError(
                    f"loss.kind 'vqgan' compares pixels in [-1, 1]: model.mean = {self.model.mean}"
                    f" and model.std = {self.model.std}, expected 0.5 everywhere"
                )


@dataclass(frozen=True)
class TokenData:
    """Where a transformer's tokens come from, and how `prepare` makes them.

    Attributes:
        source: the captioned images.
        filter: which of them are left out.
        from: the workdir of an earlier run: what the config does not give itself of source, token
            store, tokenizers and sizes is that run's. Of a bundle it takes tokenizers and sizes.
        store: the token store; empty for WORKDIR/tokens. Or a compact binary of the CogView release
            or its LMDB (a folder with data.mdb), for the two tokenizers named here.
        mixture: token stores in the place of `store`, which are mixed by weights: a section for
            each under a name of its own. All were made with the same tokenizers.
        image_tokenizer: the bundle whose image tokenizer encodes the images; may be an address.
        text_tokenizer: a SentencePiece model, or ADDRESS/text.model; empty trains one, see `text`.
        text: how a text tokenizer is trained.
        text_records: it is trained on the captions of the first so many records.
        encode_batch: images encoded at a time.
        encode_precision: type of the encoder's arithmetic; another type finds other codes.
        image_grid: rows and columns of the codes of a whole image (of the larger one where a
            record has two), if training cuts random windows of `layout.grid` out of it: one number
            for squares, or two, such as 32,48, to whose aspect ratio images are cropped. 0 where
            images have `layout.grid`.
        crop: how an image gets the aspect ratio of its codes: "center" cuts out its centre, "pad"
            shows all of it on white paper, "random" cuts each view but the first at a random place.
        views: how often each image is encoded: as it is, and then as random views of it, which
            `smallest_crop`, `largest_crop` and `flip` describe. Few images teach more so.
        smallest_crop, largest_crop: the sides of a view are a random share between these of the
            image's. Above 1 the image is smaller, and the pixels of its edge go on around it.
        flip: mirror half of the views. Off by default, since captions say left and right.
        shard_size: records of a shard of the store; each view counts.
        max_skipped: the share of records that may be unreadable or without a caption.
        validation_share: the share of the store's records that are held out: training never reads
            them, and the loss is measured on them. Their numbers alone decide which these are.
    """

    #: Names of settings in the configs of earlier runs, and what they are called now.
    RENAMED: ClassVar[Mapping[str, str]] = MappingProxyType({"picture_grid": "image_grid"})

    source: SourceConfig
    filter: FilterConfig = FilterConfig()
    from_: str = ""
    store: str = ""
    mixture: dict[str, MixedStore] = field(default_factory=dict)
    image_tokenizer: str = ""
    text_tokenizer: str = ""
    text: TextConfig = TextConfig()
    text_records: int = 1_000_000
    encode_batch: int = 64
    encode_precision: Literal["float32", "bfloat16", "float16"] = "float32"
    image_grid: int | tuple[int, int] = 0
    crop: Crop = "center"
    views: int = 1
    smallest_crop: float = 1.0
    largest_crop: float = 1.0
    flip: bool = False
    shard_size: int = 8192
    max_skipped: float = 0.05
    validation_share: float = 0.0

    def __post_init__(self):
        require_paths(self, "store")
        require_bundles(self, "from_", "image_tokenizer", "text_tokenizer")
        check_names(self.mixture, "mixture")
        if self.mixture and self.store:
            raise SettingError(
                f"store = {self.store!r} beside the mixture of {', '.join(self.mixture)}: expected"
                " one or the other"
            )
        require_range(self, "text_records", "shard_size", at_least=1)
        require_range(self, "encode_batch", at_least=1, at_most=2**16)
        require_range(self, "image_grid", at_least=0, at_most=2**10)
        require_range(self, "views", at_least=1, at_most=2**10)
        require_range(self, "smallest_crop", above=0, at_most=1)
        require_range(self, "largest_crop", at_least=1, at_most=4)
        variation = {"smallest_crop": 1.0, "largest_crop": 1.0, "flip": False}
        varied = {name: plain for name, plain in variation.items() if getattr(self, name) != plain}
        if self.views > 1 and not varied and self.crop != "random":
            raise SettingError(
                f"views = {self.views}: all views of an image would be alike; set smallest_crop,"
                " such as 0.8, largest_crop or flip as well, or views = 1"
            )
        if self.views == 1 and self.crop == "random":
            raise SettingError(
                "crop = 'random' with views = 1: an image is encoded once, for good; set more"
                " views, such as 8, or crop = 'center' or 'pad'"
            )
        if self.views == 1 and varied:
            raise SettingError(
                "views = 1: an image is encoded as it is, but"
                f" {', '.join(f'{name} = {getattr(self, name)}' for name in varied)} would vary it;"
                f" set {', '.join(f'{name} = {plain}' for name, plain in varied.items())} as well,"
                " or more views"
            )
        require_range(self, "max_skipped", at_least=0, at_most=1)
        require_range(self, "validation_share", at_least=0, below=1)
        if not self.source.require_captions:
            raise InputError(
                "source.require_captions is False, but a transformer learns from captions"
            )


@dataclass(frozen=True)
class TransformerExperiment:
    """Stage 2: a transformer over captions and codes.

    Attributes:
        stage: the value that selects a transformer.
        train: steps, batch, checkpoints.
        data: the captioned images and their token store.
        model: sizes and switches of the transformer.
        vocabulary: how many codes and text pieces there are.
        layout: the task, and the sizes of its sequence.
        optimizer: rate, schedule, decay.
        text_weight: weight of a text token in the loss; an image token has 1.
        prompt_weight: weight of the tokens before the last part of the sequence; those from there
            on have 1. With 0, only what is sampled later is learned.
        drop_captions: the share of rows whose text is left out, so that guidance has something to
            compare with.
        corrupt_codes: the share of the image codes of a row that are replaced by random ones where
            the model reads them, not where it predicts them. A model of few images then cannot tell
            by the first codes which of them a row shows, and has to read its caption.
        code_embeddings: what the embeddings of image codes start from in a run without init_from:
            "normal", as all others do, or "codec", the image tokenizer's own vectors.
        mesh: how devices are divided.
        precision: types of the arithmetic: float32, bfloat16, float16 or float16_pure.
        implementation: which programs compute attention and decode.
        loss_scale: used only with float16 policies.
        profile: which steps are profiled.
        seed: of all random numbers of the run, 0 to 2^32 - 1.
        init_from: the bundle whose transformer training starts from; empty for none.
        lora: trains low-rank adapters of that transformer instead of all of it.
        sampling: how the model is best sampled: previews and benchmarks are, and whoever takes its
            bundle and says nothing else.
    """

    stage: Literal["transformer"]
    train: TransformerTrainConfig
    data: TokenData
    model: TransformerConfig = TransformerConfig()
    vocabulary: Vocabulary = Vocabulary()
    layout: LayoutConfig = LayoutConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    text_weight: float = 1.0
    prompt_weight: float = 1.0
    drop_captions: float = 0.0
    corrupt_codes: float = 0.0
    code_embeddings: Literal["normal", "codec"] = "normal"
    mesh: MeshConfig = MeshConfig()
    precision: str = "float32"
    implementation: ImplementationConfig = ImplementationConfig()
    loss_scale: LossScaleConfig = LossScaleConfig()
    profile: ProfileConfig = ProfileConfig()
    seed: int = 0
    init_from: str = ""
    lora: LoRAConfig = LoRAConfig()
    sampling: SamplingSettings = SamplingSettings()

    def programs(self) -> Implementation:
        """The programs that run the transformer on all devices of this run.

        Raises:
            InputError: the devices cannot run those that `implementation` asks for.
        """
        types, devices = policy(self.precision), jax.device_count()
        return choose_implementation(self.model, types, self.implementation, devices=devices)

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of the codes of a whole image; of the larger one where it has two."""
        whole = self.data.image_grid or self.layout.grid
        return whole if isinstance(whole, tuple) else (whole, whole)

    @property
    def image_grids(self) -> list[tuple[int, int]]:
        """Rows and columns of the codes of a whole image, for each image region of the layout."""
        (rows, columns), window = self.image_grid, self.layout.grid
        images = make_layout(self.layout, self.vocabulary).images
        return [(x.grid * rows // window, x.grid * columns // window) for x in images]

    def __post_init__(self):
        whole, window = self.image_grid, self.layout.grid
        odd = self.layout.task == "super_resolution" and any(side % 2 for side in whole)
        if self.data.image_grid and (min(whole) < window or odd):
            raise InputError(
                f"data.image_grid {self.data.image_grid} with layout.grid {window}: expected at"
                " least that, and even numbers for super_resolution, or 0 for the same"
            )
        require_range(self, "drop_captions", "corrupt_codes", at_least=0, at_most=1)
        require_range(self, "text_weight", "prompt_weight", at_least=0)
        require_range(self, "seed", at_least=0, below=2**32)
        require_bundles(self, "init_from")
        policy(self.precision)
        _check_validation(self.train.validate_every, self.data.validation_share, "records")
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
        if self.sampling.guidance not in (None, 1.0):
            if self.layout.task != "text_to_image":
                raise InputError(
                    f"sampling.guidance {self.sampling.guidance}: a model of layout.task"
                    f" {self.layout.task!r} has none, leave it at 1"
                )
            if not self.drop_captions:
                raise InputError(
                    f"sampling.guidance {self.sampling.guidance} compares with images without a"
                    " caption, but with drop_captions 0 none are learned: set it to 0.1"
                )
        if self.model.conventions.tensor_norm:
            raise InputError(
                "model.compat 'official' lets later tokens change earlier ones and is for running"
                " released weights; to finetune them name their bundle in init_from and leave"
                " model.compat 'none'"
            )
        if self.lora.rank and not self.init_from:
            raise InputError(
                f"lora.rank {self.lora.rank} adapts a trained transformer, but init_from is empty:"
                " name its bundle there, or set lora.rank to 0"
            )
        if self.lora.rank > self.model.width:
            raise InputError(
                f"lora.rank {self.lora.rank}: expected at most model.width {self.model.width}"
            )
        if self.train.sample_every and self.layout.task != "text_to_image":
            raise InputError(
                f"train.sample_every {self.train.sample_every}: a model of layout.task"
                f" {self.layout.task!r} has no previews; set it to 0"
            )


def _check_validation(every: int, share: float, records: str) -> None:
    if every and not share:
        raise InputError(
            f"train.validate_every = {every}, but data.validation_share = 0 holds out no {records}:"
            " choose a share such as 0.01, or train.validate_every = 0"
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
