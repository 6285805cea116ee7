"""What a benchmark is, and which there are.

A benchmark is a module of `cogview_jax.evaluation.benchmarks`. Its file is all that has to be
added: the file's name is the name of the benchmark, the first line of its docstring is the
description that `evaluate --help` shows, and `run` measures. NEEDS_BUNDLE = False in it says that
there may be no bundle, NEEDS_PARTS and NEEDS_TASK which parts a bundle has to have and what its
transformer has to be trained for, SHARES_WORK = True that several processes share the work, and
NEEDS_FLAGS names flags that it cannot do without, so that no training run can measure it on the
way. TAKES and FEATURES name the flags that it uses (`accepted_flags`); `evaluate` refuses others.
`higher_is_better` in it says which of its numbers tell a better model from a worse one.

The names are found without importing the modules, so that `evaluate --help` does without jax.
"""

import ast
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from cogview_jax.evaluation import benchmarks
from cogview_jax.runtime.bounds import MOST_CANDIDATES, MOST_PROMPTS, MOST_RADIUS, need_count
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.options import SamplingConfig, SamplingOptions, SamplingSettings

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from cogview_jax.evaluation.page import Section
    from cogview_jax.pipeline.cogview import CogView

#: What a benchmark has measured, as JSON: numbers, texts, and mappings and lists of them.
Report = dict[str, Any]


class Measured(NamedTuple):
    """A report, and what its page shows besides: tables, curves, the images behind numbers."""

    report: Report
    sections: "Sequence[Section]" = ()


#: How images are resized for a feature network; what FID-k blurs with, and which sets.
RESIZES = ("clean", "legacy_pytorch", "tf1", "release")
BLUR_KERNELS, BLUR_SETS = ("pil", "scipy", "lafite"), ("both", "real")


@dataclass(frozen=True)
class ImageOptions:
    """What a benchmark of images is asked for: more flags of `evaluate`.

    Attributes:
        real, generated: a folder of images, a file of their statistics (`.npz`), or a bundle.
        features: the file of the weights of each feature network, by its name.
        resize: how images are resized for the network, one of RESIZES.
        blur: the radii of FID-k in pixels; 0 is FID without blur.
        blur_kernel: what they are the radii of, one of BLUR_KERNELS; see `evaluation.blur`.
        blur_sets: "both" blurs both sets; "real" the real one alone.
        fid_infinity: whether FID is extrapolated to a set without end.
        precision_recall: whether precision and recall are measured, whose time and memory grow
            with the product of the numbers of images.
        save_statistics: the file in which the statistics of the real images are kept, after the
            first of the blurs.
        captions: a file of captions like COCO's, of images in `real`; or a TensorFlow data set,
            tfds:NAME:SPLIT, in the data_dir `real`.
        prompts: texts of one's own that images are shown for.
        study: the folder of a study of people's ratings.
        systems: names and paths of what a new study compares.
    """

    real: str | None = None
    generated: str | None = None
    features: Mapping[str, str] = field(default_factory=dict)
    resize: str = "clean"
    blur: tuple[int, ...] = (0,)
    blur_kernel: str = "pil"
    blur_sets: str = "both"
    fid_infinity: bool = False
    precision_recall: bool = False
    save_statistics: str | None = None
    captions: str | None = None
    prompts: tuple[str, ...] = ()
    study: str | None = None
    systems: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        known = {"resize": RESIZES, "blur_kernel": BLUR_KERNELS, "blur_sets": BLUR_SETS}
        for name, choices in known.items():
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"--{name} {value!r}: choices are {', '.join(choices)}")
        if self.save_statistics is not None and not self.save_statistics.endswith(".npz"):
            raise InputError(
                f"--save_statistics {self.save_statistics}: expected a name that ends in .npz"
            )
        if not self.blur or len(set(self.blur)) < len(self.blur):
            raise InputError(f"--blur {self.blur}: expected different radii, such as 0,1,2,4,8")
        for radius in self.blur:
            need_count("--blur", radius, MOST_RADIUS, 0)


@dataclass(frozen=True)
class Options:
    """What a benchmark is asked for: the flags of `evaluate`.

    Attributes:
        count: how many examples of each split are measured (`--num_prompts`).
        seed: of the examples and of sampling.
        settings: of sampling; the bundle's own where they are open.
        batch_size: rows at a time; None for what free memory has room for.
        precision: of the arithmetic, a name of `runtime.precision`.
        rerank_with: a caption bundle that chooses the best of `candidates` images by CapLoss.
        candidates: images for each prompt.
        images: of benchmarks that compare images.
        bundle: the hash of the bundle that is measured.
        unfinished: a folder for what a long evaluation has so far, which it goes on from; it is
            deleted when the report is written.
    """

    count: int = 300
    seed: int = 0
    settings: SamplingSettings = SamplingSettings()
    batch_size: int | None = None
    precision: str = "float32"
    rerank_with: str | None = None
    candidates: int = 1
    images: ImageOptions = field(default_factory=ImageOptions)
    bundle: str = ""
    unfinished: str = ""

    def __post_init__(self):
        need_count("--candidates", self.candidates, MOST_CANDIDATES)
        need_count("--num_prompts", self.count, MOST_PROMPTS)
        if self.candidates > 1 and not self.rerank_with:
            raise InputError("--candidates needs a bundle to choose by: --rerank_with BUNDLE")
        SamplingOptions(self.seed, batch_size=self.batch_size)  # checks their ranges

    def sampling(self, model: "CogView") -> SamplingConfig:
        """Temperature, filters and guidance for `model`."""
        return self.settings.over(model.default_sampling)


class Benchmark(Protocol):
    """A module that measures bundles.

    It may also define `table(report: Report) -> str`, which gives the numbers of a report as lines
    for people; without it they are shown by `plain_table`.

    And it may define `higher_is_better(task: str | None) -> Mapping[str, bool]`: the numbers of a
    report by which a training run can choose its best checkpoint, each with whether a higher value
    is better. `task` is that of the transformer that is trained, such as "text_to_image"; None is
    an image tokenizer. A number's name is the keys that lead to it, as "seen/generated/all". The
    mapping is empty where nothing in the report depends on what is trained.
    """

    __name__: str

    def run(self, model: "CogView", options: Options) -> Report | Measured:
        """What `model` reaches; where NEEDS_BUNDLE is False it may be None.

        Raises:
            InputError: the bundle lacks a part that is needed or is of another task, or an option
                is out of its range.
        """
        ...


def needs(benchmark: Benchmark) -> tuple[tuple[str, ...], str | None]:
    """The parts of a bundle that a benchmark needs, and the task of its transformer, if one."""
    return getattr(benchmark, "NEEDS_PARTS", ()), getattr(benchmark, "NEEDS_TASK", None)


def measure(benchmark: Benchmark, model: "CogView | None", options: Options) -> Measured:
    """What a benchmark measures, whether or not its page shows more than the report.

    Raises:
        InputError: the model is not what the benchmark `needs`; or as `Benchmark.run`.
    """
    parts, task = needs(benchmark)
    if model is not None:
        model.need(*parts)
    if model is not None and task is not None:
        model.need_task(task)
    # A benchmark that needs no bundle says so, and takes None.
    found = benchmark.run(cast("CogView", model), options)
    return found if isinstance(found, Measured) else Measured(found)


def available() -> dict[str, str]:
    """The names of all benchmarks, each with the line that says what it measures."""
    files = [file for folder in benchmarks.__path__ for file in Path(folder).glob("[!_]*.py")]
    return {file.stem: _description(file) for file in sorted(files, key=lambda file: file.stem)}


def load_benchmark(name: str) -> Benchmark:
    """The benchmark of a name, one of `available()`."""
    return cast(Benchmark, importlib.import_module(f"{benchmarks.__name__}.{name}"))


def mean_of(values: "Float[np.ndarray, ' n']") -> Report:
    """A mean with its standard error (None of one value) and the number of values."""
    import numpy as np

    values = np.asarray(values, np.float64)
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(values.mean()), "standard_error": error, "n": len(values)}


def table(benchmark: Benchmark, report: Report) -> str:
    """The numbers of a report as lines for people."""
    return getattr(benchmark, "table", plain_table)(report)


def plain_table(report: Mapping[str, Any]) -> str:
    """A line for each number of a report: its keys, and its value."""
    numbers = list(_numbers(report))
    width = max((len(name) for name, _ in numbers), default=0)
    return "\n".join(f"{name:{width}}  {value:.6g}" for name, value in numbers)


def _numbers(report: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in report.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{name}, ")
        elif isinstance(value, (int, float)):
            yield name, value


def _description(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")
