"""Evaluates a bundle and writes a JSON report.

  python -m cogview_jax.evaluate --bundle runs/demo/bundle --benchmark shapes --out report.json

shapes: the share of pictures that show what their captions say, by attribute, on fresh prompts over
seen and over held-out pairs of colour and shape, beside the ceiling that the image tokenizer sets.
"""

from absl import flags

from cogview_jax.runtime import door

BUNDLE = flags.DEFINE_string("bundle", None, "the bundle's folder", required=True)
OUT = flags.DEFINE_string("out", None, "the JSON file to write", required=True)
BENCHMARK = flags.DEFINE_enum("benchmark", "shapes", ["shapes"], "what to measure")
NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 300, "prompts of each split")
SEED = flags.DEFINE_integer("seed", 0, "of the prompts and the random draws")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 takes the likeliest token")
TOP_K = flags.DEFINE_integer("top_k", 200, "only the k likeliest tokens; 0 for all")
TOP_P = flags.DEFINE_float("top_p", 1.0, "only the likeliest tokens that reach this probability")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 100, "pictures drawn at a time")
PRECISION = flags.DEFINE_enum(
    "precision", "float32", ["float32", "bfloat16", "float16", "float16_pure"], "of the arithmetic"
)


def main() -> None:
    """Flags in, one job."""
    from cogview_jax.jobs import evaluate
    from cogview_jax.sampling.filters import SamplingConfig

    evaluate.shapes(
        BUNDLE.value,
        OUT.value,
        prompts=NUM_PROMPTS.value,
        seed=SEED.value,
        sampling=SamplingConfig(TEMPERATURE.value, TOP_K.value, TOP_P.value),
        batch_size=BATCH_SIZE.value,
        precision=PRECISION.value,
    )


if __name__ == "__main__":
    door.run(main)
