"""Evaluates a bundle and writes a JSON report.

  python -m cogview_jax.evaluate --bundle runs/demo/bundle --benchmark shapes --out report.json

  python -m cogview_jax.evaluate --bundle runs/demo/bundle --benchmark shapes --out report.json \\
      --rerank_with runs/demo/caption/bundle --candidates 8

shapes: on fresh prompts over seen and over held-out pairs of colour and shape, the share of
pictures that show what their captions say, by attribute, beside the ceiling that the image
tokenizer sets; with --rerank_with also that of the best of 1, 2, 4 and 8 pictures by CapLoss. Of a
caption bundle, the share of captions that say what drawings show; of a bundle of super-resolution,
the squared error of its pictures, beside those of usual ways to enlarge them.
"""

from absl import flags

from cogview_jax.runtime import command_line
from cogview_jax.runtime.bounds import MOST_CANDIDATES, MOST_PROMPTS, MOST_ROWS, need_flag

BUNDLE = command_line.path_flag("bundle", "the bundle's folder", required=True)
OUT = command_line.path_flag("out", "the JSON file to write", required=True)
BENCHMARK = flags.DEFINE_enum("benchmark", "shapes", ["shapes"], "what to measure")
NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 300, "prompts of each split")
SEED = flags.DEFINE_integer("seed", 0, "of the prompts and the random draws")
TEMPERATURE = flags.DEFINE_float(
    "temperature",
    None,
    "0 takes the likeliest token; by default 1, for captions 0, for super_resolution 0.7 or, with"
    " released weights, 1.02",
)
TOP_K = flags.DEFINE_integer("top_k", 200, "only the k likeliest tokens; 0 for all")
TOP_P = flags.DEFINE_float("top_p", 1.0, "only the likeliest tokens that reach this probability")
GUIDANCE = flags.DEFINE_float(
    "guidance",
    1.0,
    "above 1 follows the prompt more closely, for models trained with drop_captions",
)
RERANK_WITH = command_line.path_flag("rerank_with", "a caption bundle that chooses the best")
CANDIDATES = flags.DEFINE_integer("candidates", 8, "pictures for each prompt to choose from")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "pictures at a time; by default what free memory has room for"
)
PRECISION = flags.DEFINE_enum(
    "precision", "float32", ["float32", "bfloat16", "float16", "float16_pure"], "of the arithmetic"
)


def main() -> None:
    """Flags in, one job."""
    # Before the libraries are loaded that take seconds.
    need_flag(NUM_PROMPTS, MOST_PROMPTS)
    need_flag(CANDIDATES, MOST_CANDIDATES)
    need_flag(BATCH_SIZE, MOST_ROWS)
    from cogview_jax.commands import evaluate_bundle
    from cogview_jax.commands.sample_inputs import Draws
    from cogview_jax.runtime.errors import InputError
    from cogview_jax.sampling.options import SamplingConfig

    if CANDIDATES.value != CANDIDATES.default and not RERANK_WITH.value:
        raise InputError("--candidates needs a bundle to choose by: --rerank_with BUNDLE")
    best = (
        evaluate_bundle.Candidates(RERANK_WITH.value, CANDIDATES.value)
        if RERANK_WITH.value
        else None
    )
    evaluate_bundle.shapes(
        BUNDLE.value,
        OUT.value,
        prompts=NUM_PROMPTS.value,
        draws=Draws(
            seed=SEED.value,
            sampling=SamplingConfig(1.0, TOP_K.value, TOP_P.value, GUIDANCE.value),
            batch_size=BATCH_SIZE.value,
            precision=PRECISION.value,
        ),
        temperature=TEMPERATURE.value,
        candidates=best,
    )
