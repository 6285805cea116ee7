"""Writes a bundle for use without this code.

  python -m cogview_jax.export --bundle emoji --format stablehlo --out exported
  python exported/run.py --prompt "a red heart" --seed 0 --out samples.npz

  python -m cogview_jax.export --bundle runs/demo/bundle --format safetensors --out files
  python -m cogview_jax.export --bundle bundles/base --format safetensors --names official \\
      --out files
  python -m cogview_jax.export --bundle runs/demo/checkpoints/500 --format orbax --out parameters

Formats:
  stablehlo    programs that jax, or another runtime of StableHLO, runs on any of --platforms:
               encode, decode, prefill and decode_step, and for text to image the whole of it, each
               for --batch_size rows; the _guided ones where the model has learned to be guided.
               Weights lie beside them as arguments, in safetensors. run.py samples with them, and
               needs jax, flatbuffers, numpy and sentencepiece alone.
  safetensors  a file for each part, under our names or those of the CogView release (--names).
  orbax        a folder for each part, which Orbax alone restores.

OUT also gets the text tokenizer and export.json, which says what the files are, what every program
takes and gives, and the SHA-256 of each file. An earlier export at OUT is replaced; another folder
that holds something is refused.
"""

from absl import flags

from cogview_jax.runtime import flag_kinds
from cogview_jax.runtime.bounds import MOST_ROWS, need_flag
from cogview_jax.runtime.errors import InputError

BUNDLE = flag_kinds.address_flag(
    "bundle",
    "the bundle's folder, a run's workdir, one of its checkpoints, the name of a shipped bundle,"
    " such as emoji, or an address: hf://OWNER/NAME, gs://BUCKET/DIR, s3://BUCKET/DIR,"
    " https://HOST/DIR",
    required=True,
)
FORMAT = flags.DEFINE_enum(
    "format", None, ["stablehlo", "safetensors", "orbax"], "what to write", required=True
)
OUT = flag_kinds.path_flag("out", "the folder to write", required=True)
ADAPTER = flag_kinds.path_flag(
    "adapter", "the folder of a low-rank adapter that is merged into the transformer"
)
PLATFORMS = flags.DEFINE_list(
    "platforms", ["cpu", "cuda", "tpu"], "stablehlo: of cpu, cuda, rocm and tpu, where it runs"
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "stablehlo: rows of every program")
PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "bfloat16", "float16", "float16_pure"],
    "stablehlo: of the arithmetic, and of the transformer's weights",
)
NAMES = flags.DEFINE_enum(
    "names", "ours", ["ours", "official"], "safetensors: whose names the arrays have"
)


def main() -> None:
    """Flags in, one job."""
    need_flag(BATCH_SIZE, MOST_ROWS)
    for flag, form in (
        (PLATFORMS, "stablehlo"),
        (BATCH_SIZE, "stablehlo"),
        (PRECISION, "stablehlo"),
        (NAMES, "safetensors"),
    ):
        if flag.value != flag.default and form != FORMAT.value:
            raise InputError(f"--{flag.name} is for --format {form}, not {FORMAT.value}")
    from cogview_jax.interop import exports
    from cogview_jax.interop.stablehlo.folder import StableHLOOptions
    from cogview_jax.runtime.precision import policy

    platforms = tuple(dict.fromkeys(PLATFORMS.value))
    programs = StableHLOOptions(platforms, BATCH_SIZE.value, policy(PRECISION.value))
    options = exports.ExportOptions(programs, NAMES.value)
    exports.export(BUNDLE.value, FORMAT.value, OUT.value, options, adapter=ADAPTER.value)
