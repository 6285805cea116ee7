"""Samples from a bundle.

  python -m cogview_jax.sample --bundle emoji --prompt "a blue butterfly in flat style"

  python -m cogview_jax.sample --bundle runs/demo/bundle --task text_to_image --out images \\
      --prompt "a large red circle in the center on a white background" --num_images 4

  python -m cogview_jax.sample --bundle runs/demo/bundle --task complete --out completed \\
      --image upper_half.png --keep_rows 4 --prompt "a large red circle on a white background"

  python -m cogview_jax.sample --bundle runs/base/bundle --task text_to_image --out best \\
      --prompt "a red star" --num_images 60 --rerank_with runs/caption/bundle --keep 4

  python -m cogview_jax.sample --bundle runs/base/bundle --task text_to_image --out large \\
      --prompt "a red star" --num_images 60 --rerank_with runs/caption/bundle --keep 4 \\
      --upsample_with runs/superres/bundle

  python -m cogview_jax.sample --bundle runs/superres/bundle --task super_resolution --out large \\
      --image small.png --prompt "a red star"

  python -m cogview_jax.sample --bundle runs/caption/bundle --task caption --out said --image a.png

  python -m cogview_jax.sample --bundle runs/base/bundle --out judged --num_images 4 \\
      --layout geneval --prompts evaluation_metadata.jsonl

  python -m cogview_jax.sample --bundle runs/caption/bundle --task rerank --out scored \\
      --image a.png --image b.png --prompt "a red star"

Images go to OUT/images/*.png, OUT/samples.jsonl (prompt, index, seed and file of each, and its
score where there is one) and OUT/grid.png; captions to OUT/captions.jsonl; scores (CapLoss, lower
is better) to OUT/scores.jsonl. The same seed gives the same images whatever the batch size or the
other prompts. A job that was interrupted goes on when it is started again: its images wait in
OUT/unfinished, and what earlier jobs left in OUT stays until all are there. With --layout the
images are also in OUT/geneval or OUT/dpg, as the evaluator of that benchmark reads them.

A prompt with more tokens than the model's text region holds is cut, as captions are in training,
and standard error says so; --long_prompts refuse takes it for bad input. Blank prompts, such with
more than 4,096 characters, and what is no text always are. For text_to_image, a bad prompt in the
file --prompts is named on standard error and left out, the others are sampled, and the exit status
is 2. The images' file names count all prompts that are not blank, so that they are the same once it
is mended.
"""

from typing import Literal, cast

from absl import flags

from cogview_jax.commands.sampling_flags import sampling_flags
from cogview_jax.runtime import command_line, flag_kinds
from cogview_jax.runtime.bounds import (
    MOST_CANDIDATES,
    MOST_IMAGES,
    MOST_ROUNDS,
    MOST_ROWS,
    need_flag,
)
from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.options import SamplingOptions, SamplingSettings

BUNDLE = flag_kinds.address_flag(
    "bundle",
    "the bundle's folder, a run's workdir, one of its checkpoints, the name of a shipped bundle,"
    " such as emoji, or an address: hf://OWNER/NAME, gs://BUCKET/DIR, s3://BUCKET/DIR,"
    " https://HOST/DIR",
    required=True,
)
TASK = flags.DEFINE_enum(
    "task",
    "text_to_image",
    ["text_to_image", "complete", "super_resolution", "caption", "rerank"],
    "what to do",
)
OUT = flag_kinds.path_flag("out", "the folder to write to", default="samples")
PROMPT = flags.DEFINE_multi_string(
    "prompt", [], "a prompt; super_resolution needs one where its model has learned with text"
)
PROMPTS = flag_kinds.path_flag(
    "prompts", "a UTF-8 file, or a pipe such as /dev/stdin, with one prompt a line"
)
LAYOUT = flags.DEFINE_enum(
    "layout",
    None,
    ["geneval", "dpg"],
    "a benchmark: --prompts is its file (GenEval's evaluation_metadata.jsonl) or folder of prompts"
    " (DPG-Bench), and OUT/geneval or OUT/dpg has the images as its evaluator reads them",
)
LONG_PROMPTS = flags.DEFINE_enum(
    "long_prompts",
    "cut",
    ["cut", "refuse"],
    "what becomes of prompts that are longer than the model's text region",
)
IMAGE = flag_kinds.paths_flag(
    "image",
    "an image to complete, upsample, caption or score; one prompt each, or one for all",
)
KEEP_ROWS = flags.DEFINE_integer("keep_rows", None, "rows of codes to keep of it; half by default")
NUM_IMAGES = flags.DEFINE_integer("num_images", 1, "images for each prompt")
SEED = flags.DEFINE_integer("seed", 0, "of the random numbers")
RERANK_WITH = flag_kinds.address_flag(
    "rerank_with", "a caption bundle that orders the images by CapLoss"
)
KEEP = flags.DEFINE_integer("keep", None, "images of each prompt that stay; all by default")
UPSAMPLE_WITH = flag_kinds.address_flag(
    "upsample_with", "a bundle of super-resolution that upsamples the images that stay"
)
SAMPLING = sampling_flags()
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "pixels a side at which super_resolution reads --image; by default what its codec has learned",
)
WINDOW_CANDIDATES = flags.DEFINE_integer(
    "window_candidates",
    None,
    "how often each window of a larger image is sampled; the candidate nearest to the given image"
    " when downsampled is kept. By default 1 for released weights and at temperature 0, else 16",
)
BACK_PROJECTION = flags.DEFINE_integer(
    "back_projection",
    None,
    "rounds of iterative back-projection, after which larger images agree with the given ones when"
    " downsampled; 0 for what the codes alone give. By default 0 for released weights, else 8",
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "images sampled at a time; by default what free memory has room for"
)
PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "bfloat16", "float16", "float16_pure", "int8"],
    "of the arithmetic",
)


def main() -> int:
    """Starts the task, which has OUT for itself.

    Returns:
        The exit status, which says whether a prompt of the file was bad.
    """
    # Before the libraries are loaded that take seconds.
    need_flag(NUM_IMAGES, MOST_IMAGES)
    need_flag(BATCH_SIZE, MOST_ROWS)
    need_flag(WINDOW_CANDIDATES, MOST_CANDIDATES)
    need_flag(BACK_PROJECTION, MOST_ROUNDS, least=0)
    settings, sampling = SAMPLING(), SamplingOptions(SEED.value, batch_size=BATCH_SIZE.value)
    _check_combination()
    with command_line.importing():
        from cogview_jax.commands import describe_images, sample_images  # noqa: F401
        from cogview_jax.commands.sample_outputs import held_output

    with held_output(OUT.value):
        return _sample(sampling, settings)


def _check_combination() -> None:
    """InputError where a flag is given that the task has no use for."""
    task = TASK.value
    others = ("complete", "super_resolution", "caption", "rerank")
    for flag, tasks in (
        (IMAGE, others),
        (IMAGE_SIZE, ("super_resolution",)),
        (KEEP_ROWS, ("complete",)),
        (LAYOUT, ("text_to_image",)),
        (RERANK_WITH, ("text_to_image",)),
        (UPSAMPLE_WITH, ("text_to_image",)),
        (WINDOW_CANDIDATES, ("super_resolution", "text_to_image")),
        (BACK_PROJECTION, ("super_resolution", "text_to_image")),
    ):
        if flag.value != flag.default and task not in tasks:
            raise InputError(f"--{flag.name} is for --task {', '.join(tasks)}, not {task}")
    if KEEP.value is not None and not RERANK_WITH.value:
        raise InputError("--keep needs a bundle to choose by: --rerank_with BUNDLE")
    for flag in (WINDOW_CANDIDATES, BACK_PROJECTION):
        if task == "text_to_image" and flag.value is not None and not UPSAMPLE_WITH.value:
            raise InputError(f"--{flag.name} needs a bundle that upsamples: --upsample_with BUNDLE")
    if LAYOUT.value and PROMPT.value:
        raise InputError("--layout takes the benchmark's prompts alone: --prompts, no --prompt")
    if task == "caption" and (PROMPT.value or PROMPTS.value):
        raise InputError("--task caption finds the text itself: it takes no prompt")


def _sample(sampling: SamplingOptions, settings: SamplingSettings) -> int:
    from cogview_jax.checkpoints.step_bundle import located
    from cogview_jax.commands import describe_images, sample_images
    from cogview_jax.commands.benchmark_layouts import read_layout
    from cogview_jax.commands.sample_inputs import JobOptions, read_prompts

    # Of a workdir the newest checkpoint of now, whatever comes while images are sampled.
    task, bundle, out, images = TASK.value, located(BUNDLE.value), OUT.value, IMAGE.value
    long = cast(Literal["cut", "refuse"], LONG_PROMPTS.value)
    options = JobOptions(sampling, NUM_IMAGES.value, PRECISION.value, long, settings)
    upsampling = sample_images.Upsampling(WINDOW_CANDIDATES.value, BACK_PROJECTION.value)
    if task == "caption":
        describe_images.caption(bundle, out, images, options)
        return 0
    layout = None if LAYOUT.value is None else read_layout(LAYOUT.value, PROMPTS.value)
    # Whether super-resolution needs text is known with its bundle.
    needed = task != "super_resolution"
    prompts = layout.prompts if layout else read_prompts(PROMPT.value, PROMPTS.value, needed)
    if task == "complete":
        sample_images.complete(bundle, out, images, prompts, KEEP_ROWS.value, options)
    elif task == "super_resolution":
        size = IMAGE_SIZE.value
        sample_images.super_resolution(bundle, out, images, prompts, options, size, upsampling)
    elif task == "rerank":
        describe_images.rerank(bundle, out, images, prompts, options)
    else:
        best = None
        if RERANK_WITH.value:
            best = sample_images.Reranking(located(RERANK_WITH.value), KEEP.value)
        upsampler = located(UPSAMPLE_WITH.value) if UPSAMPLE_WITH.value else None
        first = len(PROMPT.value)
        bad = sample_images.text_to_image(
            bundle, out, prompts, options, best, upsampler, upsampling, first, layout
        )
        return command_line.BAD_INPUT if bad else 0
    return 0
