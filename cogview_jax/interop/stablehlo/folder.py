"""Writes the programs of a bundle, their weights, and what a runner has to know."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from cogview_jax.checkpoints.bundle import Bundle
from cogview_jax.checkpoints.bundle_parts import CodecPart, TransformerPart
from cogview_jax.interop.safetensors_arrays import write_arrays
from cogview_jax.interop.safetensors_files import TEXT_TOKENIZER
from cogview_jax.interop.stablehlo.programs import CodecPrograms, Program, TransformerPrograms
from cogview_jax.interop.stablehlo.weights import (
    NamedWeights,
    codec_weights,
    transformer_weights,
)
from cogview_jax.models.implementation import Implementation
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.precision import FLOAT32, Policy
from cogview_jax.runtime.progress import Progress
from cogview_jax.sampling.options import SamplingConfig
from cogview_jax.tokenizers.layout import Layout, Region, make_layout

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
RUNNER = "run.py"
#: No kernel of ours: what XLA compiles runs on every platform.
IMPLEMENTATION = Implementation("xla", "layers", "any")


@dataclasses.dataclass(frozen=True)
class StableHLOOptions:
    """What is fixed in the programs.

    Attributes:
        platforms: those that the programs run on, of `PLATFORMS`.
        rows: their batch size.
        policy: the types of their arithmetic; images are encoded in float32, as everywhere.

    Raises:
        InputError: there is no such platform, or none is given.
    """

    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    rows: int = 1
    policy: Policy = FLOAT32

    def __post_init__(self) -> None:
        unknown = [name for name in self.platforms if name not in PLATFORMS]
        if unknown or not self.platforms:
            raise InputError(
                f"--platforms {','.join(self.platforms)}: expected some of {', '.join(PLATFORMS)}"
            )


def write_programs(opened: Bundle, folder: Path, options: StableHLOOptions) -> dict[str, Any]:
    """Writes a bundle's programs into `folder`; returns what export.json says of them.

    Weights are not in the programs but beside them, in the types that the programs take; one array
    of the bundle is in memory at a time.

    Raises:
        InputError: the bundle has neither codec nor transformer, its parts do not fit each other,
            or a program cannot be lowered for a platform.
    """
    opened.check_fit()
    programs: dict[str, Program] = {}
    weights: dict[str, NamedWeights] = {}
    about: dict[str, Any] = {
        "platforms": list(options.platforms),
        "batch_size": options.rows,
        "precision": options.policy.name,
        "weights": {},
        "programs": {},
    }
    codec = None
    if "codec" in opened.parts:
        part = opened.stored_codec()
        codec = _codec_programs(part, options)
        programs |= codec.all
        weights["codec"], about["codec"] = codec.weights, dataclasses.asdict(part.config)
    if "transformer" in opened.parts:
        transformer = opened.stored_transformer()
        for guide in (False, True) if _learned_guidance(transformer) else (False,):
            made = _transformer_programs(transformer, codec, guide, options)
            programs |= made.all
            weights["transformer"] = made.weights
        about |= _described_layout(made.layout) | {"sampling": _recommended(transformer)}
    if not programs:
        raise InputError(f"bundle {opened.path} has neither codec nor transformer to export")
    for name, named in weights.items():
        file = about["weights"][name] = f"{name}.safetensors"
        with Progress(len(named.shapes), "export", unit="array") as progress:
            write_arrays(folder / file, named.shapes, _counted(named.arrays(), progress), {})
    if "text" in opened.parts:
        about["text"] = TEXT_TOKENIZER
        opened.text().save(folder / TEXT_TOKENIZER)
        if "text_to_image" in programs:
            shutil.copyfile(Path(__file__).with_name("runner.py"), folder / RUNNER)
    with Progress(len(programs), "export", unit="program") as progress:
        for name, program in programs.items():
            progress.doing(name)
            about["programs"][name] = _write(folder, name, program, weights, options)
            progress.update()
    return about


def _codec_programs(part: CodecPart, options: StableHLOOptions) -> CodecPrograms:
    decoder = part.config.module(options.policy.compute)
    return CodecPrograms(part.config.module(), decoder, codec_weights(part), options.rows)


def _transformer_programs(
    part: TransformerPart, codec: CodecPrograms | None, guide: bool, options: StableHLOOptions
) -> TransformerPrograms:
    model = part.model.clone(policy=options.policy, implementation=IMPLEMENTATION)
    layout = make_layout(part.layout, part.vocabulary)
    weights = transformer_weights(part, model)
    return TransformerPrograms(model, layout, weights, options.rows, codec, guide)


def _counted(
    arrays: Iterator[tuple[str, np.ndarray]], progress: Progress
) -> Iterator[tuple[str, np.ndarray]]:
    for pair in arrays:
        yield pair
        progress.update()


def _write(
    folder: Path,
    name: str,
    program: Program,
    weights: Mapping[str, NamedWeights],
    options: StableHLOOptions,
) -> dict[str, Any]:
    """Writes one program; returns what is said of it."""
    lowered = lower(name, program, weights, options.platforms)
    file = f"{name}.stablehlo"
    (folder / file).write_bytes(lowered.serialize())
    about = {
        "file": file,
        "weights": list(program.weights),
        "calling_convention_version": lowered.calling_convention_version,
        "inputs": _shapes(program.inputs),
    }
    if program.state is not None:
        about["state"] = _shapes(program.state)
    outputs = jax.tree.unflatten(lowered.out_tree, lowered.out_avals)
    return about | {"outputs": _shapes(outputs)}


def lower(
    name: str,
    program: Program,
    weights: Mapping[str, NamedWeights],
    platforms: tuple[str, ...],
) -> export.Exported:
    """The program for all the platforms at once, whichever of them is here.

    Raises:
        InputError: something that it computes is not to be had on one of them.
    """
    function, arguments = program.function, [program.inputs]
    donated: tuple[int, ...] = ()
    if program.state is not None:
        arguments.append(program.state)
        donated = (2,)
    shapes = {part: weights[part].shapes for part in program.weights}
    try:
        return export.export(jax.jit(function, donate_argnums=donated), platforms=platforms)(
            shapes, *arguments
        )
    except (NotImplementedError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"--platforms {','.join(platforms)}: {name} cannot be lowered for all of them"
            f" ({reason[:300]})"
        ) from error


def _learned_guidance(part: TransformerPart) -> bool:
    """Whether a model has learned what guidance needs, or recommends it."""
    learned = bool(part.drop_captions) or part.sampling.given.get("guidance", 1) != 1
    return learned and part.layout.task == "text_to_image"


def _recommended(part: TransformerPart) -> dict[str, Any]:
    """How the model is sampled best; each value has the type of its default."""
    usual = dataclasses.asdict(SamplingConfig())
    del usual["parallel_window"]  # programs sample one token after the other, and give the same
    return {name: type(x)(part.sampling.given.get(name, x)) for name, x in usual.items()}


def _described_layout(layout: Layout) -> dict[str, Any]:
    """What a runner has to know of sequences, as numbers."""
    vocabulary = layout.vocabulary

    def first_id(region: Region) -> int:
        if region.kind == "command":
            return vocabulary.command(region.name)
        return vocabulary.text_start if region.kind == "text" else 0

    regions = [
        dataclasses.asdict(region) | {"first_id": first_id(region)} for region in layout.regions
    ]
    about: dict[str, Any] = {"layout": {"task": layout.task, "regions": regions}}
    if layout.task != "text_to_image":
        return about
    names = [region.kind for region in layout.regions]
    text, image = names.index("text"), names.index("image")
    return about | {
        "prompt": {
            "length": layout.prompt_length("image"),
            "before": [region["first_id"] for region in regions[:text]],
            "text_start": vocabulary.text_start,
            "text_length": layout.regions[text].length,
            "after": [region["first_id"] for region in regions[text + 1 : image]],
        }
    }


def _shapes(tree: Any) -> Any:
    """The tree with the shape and the type of each array, for JSON."""
    return jax.tree.map(lambda leaf: {"shape": leaf.shape, "dtype": str(leaf.dtype)}, tree)
