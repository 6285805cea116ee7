"""Samples from a bundle.

  python -m cogview_jax.sample --bundle runs/demo/bundle --task text_to_image --out pictures \\
      --prompt "a large red circle in the center on a white background" --num_images 4

  python -m cogview_jax.sample --bundle runs/demo/bundle --task complete --out completed \\
      --image upper_half.png --keep_rows 4 --prompt "a large red circle on a white background"

Writes OUT/images/*.png, OUT/samples.jsonl (prompt, index, seed and file of each picture) and
OUT/grid.png. The same seed gives the same pictures whatever the batch size or the other prompts.
"""

from absl import flags

from cogview_jax.runtime import door

BUNDLE = flags.DEFINE_string("bundle", None, "the bundle's folder", required=True)
TASK = flags.DEFINE_enum("task", "text_to_image", ["text_to_image", "complete"], "what to do")
OUT = flags.DEFINE_string("out", None, "the folder to write to", required=True)
PROMPT = flags.DEFINE_multi_string("prompt", [], "a prompt")
PROMPTS = flags.DEFINE_string("prompts", None, "a UTF-8 file with one prompt a line")
IMAGE = flags.DEFINE_multi_string("image", [], "a picture to complete; one prompt each, or for all")
KEEP_ROWS = flags.DEFINE_integer("keep_rows", None, "rows of codes to keep of it; half by default")
NUM_IMAGES = flags.DEFINE_integer("num_images", 1, "pictures for each prompt")
SEED = flags.DEFINE_integer("seed", 0, "of the random draws")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 takes the likeliest token")
TOP_K = flags.DEFINE_integer("top_k", 200, "only the k likeliest tokens; 0 for all")
TOP_P = flags.DEFINE_float("top_p", 1.0, "only the likeliest tokens that reach this probability")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "pictures drawn at a time")
PRECISION = flags.DEFINE_enum(
    "precision", "float32", ["float32", "bfloat16", "float16", "float16_pure"], "of the arithmetic"
)


def main() -> None:
    """Flags in, one job."""
    from cogview_jax.jobs import sample
    from cogview_jax.runtime.errors import InputError
    from cogview_jax.sampling.filters import SamplingConfig

    prompts = sample.read_prompts(PROMPT.value, PROMPTS.value)
    draws = sample.Draws(
        NUM_IMAGES.value,
        SEED.value,
        SamplingConfig(TEMPERATURE.value, TOP_K.value, TOP_P.value),
        BATCH_SIZE.value,
        PRECISION.value,
    )
    if IMAGE.value and TASK.value != "complete":
        raise InputError(f"--image is for --task complete, not {TASK.value}")
    if TASK.value == "complete":
        sample.complete(BUNDLE.value, OUT.value, IMAGE.value, prompts, KEEP_ROWS.value, draws)
    else:
        sample.text_to_image(BUNDLE.value, OUT.value, prompts, draws)


if __name__ == "__main__":
    door.run(main)
