"""The settings of a run's length, checkpoints and measurements: the section `train` of a config."""

from dataclasses import dataclass
from typing import Literal

from cogview_jax.runtime.config import SettingError, require_range
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.paths import require_paths


@dataclass(frozen=True)
class TrainConfig:
    """The length of a run, its batches, and its metrics, checkpoints and samples.

    Attributes:
        steps: how many steps the run has.
        global_batch: rows of a step, over all devices and hosts.
        accumulate: the number of parts of a batch, which are computed one after another.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between two checkpoints.
        sample_every: steps between two samples in samples/; 0 for none.
        keep: how many of the newest checkpoints are kept.
        keep_every: checkpoints of every so many steps are kept for good; 0 for none.
        keep_best: how many checkpoints with the best `best_metric` are kept.
        best_metric: a name in metrics.jsonl: of a loss or another metric of training, of what is
            measured on held-out records ("validation_..."), or of the benchmark ("benchmark/...").
            A lower value is better, but a higher one of PSNR, SSIM, usage and perplexity, and of
            what the benchmark says.
        ema_decay: of the moving average of the weights, such as 0.9999; 0 keeps none. The decay of
            the first steps is smaller: (1 + step) / (10 + step).
        bundle_weights: the weights that previews, measurements and the bundle take: "ema" (the
            moving average), "last", or "auto": the moving average where there is one.
        bundle_step: the checkpoint that the bundle is written from: "last", "best" (by
            `best_metric`, of those that `keep_best` keeps), or the number of a step that is kept.
        validate_every: steps between two measurements of the held-out records; 0 for none.
        stop_after: ends the run after so many measurements of `best_metric` in a row, on held-out
            records or by the benchmark, of which none was better than all before; 0 for never.
        benchmark: the name of a benchmark of `evaluate` that is run on the weights as they are;
            empty for none.
        benchmark_every: steps between two runs of it; 0 for none.
        benchmark_prompts: its number of examples, `evaluate --num_prompts`; at least 2.
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
    ema_decay: float = 0.0
    bundle_weights: Literal["auto", "ema", "last"] = "auto"
    bundle_step: int | Literal["last", "best"] = "last"
    validate_every: int = 0
    stop_after: int = 0
    benchmark: str = ""
    benchmark_every: int = 0
    benchmark_prompts: int = 100

    @property
    def averaged(self) -> bool:
        """Whether previews, measurements and the bundle take the moving average."""
        return self.ema_decay > 0 and self.bundle_weights != "last"

    @property
    def weights(self) -> Literal["ema", "last"] | None:
        """What the bundle says of its weights; None, nothing, where there is no average."""
        if not self.ema_decay:
            return None
        return "ema" if self.averaged else "last"

    def __post_init__(self):
        positive = ("steps", "global_batch", "accumulate", "log_every", "checkpoint_every", "keep")
        require_range(self, *positive, at_least=1)
        optional = ("sample_every", "keep_every", "keep_best", "validate_every", "stop_after")
        require_range(self, *optional, "benchmark_every", at_least=0)
        require_range(self, "benchmark_prompts", at_least=1)
        require_range(self, "ema_decay", at_least=0, below=1)
        if self.bundle_weights == "ema" and not self.ema_decay:
            raise SettingError(
                "bundle_weights = 'ema': there is no moving average, since ema_decay is 0; choose"
                " auto or last, or an ema_decay such as 0.9999"
            )
        if self.bundle_step == "best" and not self.keep_best:
            raise SettingError(
                "bundle_step = 'best': no best checkpoint is kept, since keep_best is 0; choose"
                " keep_best = 1 and a best_metric, or last"
            )
        if self.stop_after and not (self.validate_every or self.benchmark):
            raise SettingError(
                f"stop_after = {self.stop_after}: there are no measurements to count, since"
                " validate_every is 0 and there is no benchmark"
            )
        if bool(self.benchmark) != bool(self.benchmark_every):
            raise SettingError(
                f"benchmark = {self.benchmark!r} with benchmark_every = {self.benchmark_every}:"
                " expected a name and the steps between two runs, or neither"
            )
        if isinstance(self.bundle_step, int):
            require_range(self, "bundle_step", at_least=1, at_most=self.steps)
        if self.global_batch % self.accumulate:
            raise InputError(
                f"global_batch {self.global_batch} cannot be cut into accumulate ="
                f" {self.accumulate} equal parts"
            )


@dataclass(frozen=True)
class CodecTrainConfig(TrainConfig):
    """Length, batches, checkpoints and samples of a run that trains an image tokenizer.

    Attributes:
        validation_images: how many of the held-out images are measured at most.
        validation_lpips: the file with the weights of LPIPS by which they are measured (see
            docs/guides/image_tokenizers.md), of VGG-16 or AlexNet; empty takes those of
            `loss.perceptual`, and without these measures no LPIPS.
    """

    validation_images: int = 512
    validation_lpips: str = ""

    def __post_init__(self):
        super().__post_init__()
        require_range(self, "validation_images", at_least=1, at_most=2**20)
        require_paths(self, "validation_lpips")


@dataclass(frozen=True)
class TransformerTrainConfig(TrainConfig):
    """Length, batches, checkpoints and samples of a run that trains a transformer.

    Attributes:
        validation_records: how many of the held-out records are measured at most.
        sample_prompts: what the samples of a text-to-image model show: a file with one prompt a
            line, or a list of prompts. Empty takes captions of the data. The bundle names those
            that are given here, and `cogview serve` offers them as examples.
    """

    validation_records: int = 512
    sample_prompts: str | tuple[str, ...] = ""

    def __post_init__(self):
        super().__post_init__()
        require_range(self, "validation_records", at_least=1)
        if isinstance(self.sample_prompts, str):
            require_paths(self, "sample_prompts")
