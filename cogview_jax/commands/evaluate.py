"""Evaluates a bundle and writes a JSON report.

  python -m cogview_jax.evaluate --bundle runs/demo/bundle --benchmark shapes --out report.json

  python -m cogview_jax.evaluate --bundle runs/demo/bundle --benchmark shapes --out report.json \\
      --rerank_with runs/demo/caption/bundle --candidates 8

shapes uses new prompts over pairs of colour and shape that training has seen and over held-out
ones. Of a bundle for text_to_image it reports the share of images that show what their captions
say, by attribute, beside the ceiling that the image tokenizer sets; with --rerank_with also that of
the best of 1, 2, 4 and 8 candidates by CapLoss. Of a caption bundle it reports the share of
captions that say what drawings show; of a bundle for super-resolution the MSE of its images, beside
that of bilinear and bicubic resampling.
"""

from absl import flags

from cogview_jax.evaluation.benchmark import Options, available, load_benchmark
from cogview_jax.runtime import command_line
from cogview_jax.runtime.bounds import MOST_CANDIDATES, MOST_PROMPTS, MOST_ROWS, need_flag

BUNDLE = command_line.path_flag("bundle", "the bundle's folder", required=True)
OUT = command_line.path_flag("out", "the JSON file to write", required=True)
BENCHMARK = flags.DEFINE_enum(
    "benchmark",
    "shapes",
    list(available()),
    "; ".join(f"{name}: {description}" for name, description in available().items()),
)
NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 300, "prompts of each split")
SEED = flags.DEFINE_integer("seed", 0, "of the prompts and of sampling")
TEMPERATURE = flags.DEFINE_float(
    "temperature",
    None,
    "0 takes the most likely token; by default 1, for captions 0, for super_resolution 0.7 or, with"
    " released weights, 1.02",
)
TOP_K = flags.DEFINE_integer(
    "top_k", 200, "only the k most likely tokens; 0 for all", lower_bound=0
)
TOP_P = flags.DEFINE_float(
    "top_p",
    1.0,
    "only the most likely tokens that reach this probability",
)
GUIDANCE = flags.DEFINE_float(
    "guidance",
    1.0,
    "above 1 follows the prompt more closely, for models trained with drop_captions",
)
RERANK_WITH = command_line.path_flag("rerank_with", "a caption bundle that chooses the best")
CANDIDATES = flags.DEFINE_integer(
    "candidates", None, "images for each prompt to choose from, with --rerank_with 8 by default"
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "images at a time; by default what free memory has room for"
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
    options = Options(
        count=NUM_PROMPTS.value,
        seed=SEED.value,
        temperature=TEMPERATURE.value,
        top_k=TOP_K.value,
        top_p=TOP_P.value,
        guidance=GUIDANCE.value,
        batch_size=BATCH_SIZE.value,
        precision=PRECISION.value,
        rerank_with=RERANK_WITH.value,
        candidates=CANDIDATES.value or (8 if RERANK_WITH.value else 1),
    )
    from cogview_jax.evaluation.report import evaluate

    evaluate(load_benchmark(BENCHMARK.value), BUNDLE.value, OUT.value, options)
