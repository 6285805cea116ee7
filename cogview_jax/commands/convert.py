"""Converts other people's checkpoints to a bundle, and a bundle to such files, without torch.

  python -m cogview_jax.convert --source official --transformer cogview-base --num_heads 40 \\
      --image_tokenizer vqvae_hard_biggerset_011.pt --text_tokenizer cog-pretrain.model \\
      --out bundles/base
  python -m cogview_jax.convert --target official --bundle bundles/base --out official
  python -m cogview_jax.convert --source taming --image_tokenizer last.ckpt --out bundles/taming
  python -m cogview_jax.convert --target safetensors --bundle bundles/base --out files
  python -m cogview_jax.convert --adapter runs/style/adapter --bundle bundles/base \\
      --out bundles/style
  python -m cogview_jax.convert --dtype float16 --bundle bundles/base --out bundles/half

With --adapter, a low-rank adapter that a run with lora.rank trained is merged into the transformer
of the bundle that it was trained on; the tokenizers of the new bundle are those of that bundle.

With --dtype, the weights of a bundle are rounded to another type: those of the transformer, or of
an image tokenizer that is alone. One beside a transformer stays as it is, or it would give other
codes than the transformer has learned. With int8, the kernels of a transformer get 8 bits and a
scale for each output, its embeddings float16, and the rest float32.

Formats:
  official     the CogView release. Each of its three files may be left out: the bundle is then
               without that part, and what it would have told is assumed and said. A transformer
               that was read so computes as the release does (compat "official"). Back, OUT gets
               transformer/ (the tracker file and ITERATION/mp_rank_00_model_states.pt),
               image_tokenizer.pt and text_tokenizer.model.
  taming       a VQModel or GumbelVQ of CompVis' taming-transformers, as --image_tokenizer; its
               sizes are read from its tensors, and those of its loss are dropped. Back, OUT gets
               image_tokenizer.ckpt.
  llamagen     an image tokenizer of LlamaGen (a .pt file), as --image_tokenizer; to read only.
  vqgan_jax    an image tokenizer of dalle-mini (flax_model.msgpack); to read only.
  safetensors  a file for each part of any bundle, which describes itself. Back, OUT gets
               transformer.safetensors, image_tokenizer.safetensors and text_tokenizer.model.

Without --dtype weights keep their type and their bits.
"""

from absl import flags

from cogview_jax.runtime import flag_kinds

SOURCE = flags.DEFINE_enum(
    "source",
    None,
    ["official", "taming", "llamagen", "vqgan_jax", "safetensors"],
    "the format to read; the bundle is --out",
)
TARGET = flags.DEFINE_enum(
    "target",
    None,
    ["official", "taming", "safetensors"],
    "the format to write of --bundle, into --out",
)
TRANSFORMER = flag_kinds.path_flag(
    "transformer",
    "the folder with latest_checkpointed_iteration.txt (official), or a .safetensors file",
)
IMAGE_TOKENIZER = flag_kinds.path_flag("image_tokenizer", "the image tokenizer's file")
TEXT_TOKENIZER = flag_kinds.path_flag("text_tokenizer", "the SentencePiece model")
NUM_HEADS = flags.DEFINE_integer("num_heads", None, "the transformer's heads; 40 in the released")
CODES = flags.DEFINE_integer(
    "codes", None, "image codes of the vocabulary, if --image_tokenizer is left out"
)
PIECES = flags.DEFINE_integer(
    "pieces", None, "text pieces of the vocabulary, if --text_tokenizer is left out"
)
GRID = flags.DEFINE_integer(
    "grid",
    None,
    "rows and columns of an image's codes, unless the largest that the positions hold, or those of"
    " 256 pixels",
)
LAYOUT_TASK = flags.DEFINE_string(
    "layout_task", None, "what the transformer was trained for, unless text_to_image"
)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16", "float16", "int8"], "the type of the weights of --out"
)
BUNDLE = flag_kinds.address_flag(
    "bundle",
    "the bundle, or its address, to give back, to merge --adapter into, or to round",
)
ADAPTER = flag_kinds.path_flag("adapter", "the folder of the adapter to merge into --bundle")
OUT = flag_kinds.path_flag("out", "the bundle, or the folder, to write", required=True)


def main() -> None:
    """Flags in, one job."""
    from cogview_jax.interop import conversion, files

    given = files.SourceFiles(
        transformer=TRANSFORMER.value,
        image_tokenizer=IMAGE_TOKENIZER.value,
        text_tokenizer=TEXT_TOKENIZER.value,
        num_heads=NUM_HEADS.value,
        codes=CODES.value,
        pieces=PIECES.value,
        grid=GRID.value,
        layout_task=LAYOUT_TASK.value,
    )
    conversion.convert(
        SOURCE.value,
        TARGET.value,
        given,
        BUNDLE.value,
        OUT.value,
        adapter=ADAPTER.value,
        dtype=DTYPE.value,
    )
