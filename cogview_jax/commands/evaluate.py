"""Measures a bundle, or how near two sets of images are, and writes a JSON report and a page.

  python -m cogview_jax.evaluate --bundle runs/demo/bundle --benchmark shapes --out report.json

  python -m cogview_jax.evaluate --bundle runs/demo/bundle --benchmark shapes --out report.json \\
      --rerank_with runs/demo/caption/bundle --candidates 8

shapes uses new prompts over pairs of colour and shape that training has seen and over held-out
ones. Of a bundle for text_to_image it reports the share of images that show what their captions
say, by attribute, beside the ceiling that the image tokenizer sets; with --rerank_with also that of
the best of 1, 2, 4 and 8 candidates by CapLoss. Of a caption bundle it reports the share of
captions that say what drawings show; of a bundle for super-resolution the MSE of its images, beside
that of bilinear and bicubic resampling.

  python -m cogview_jax.evaluate --benchmark fid --real photos --generated samples \\
      --features inception=pt_inception-2015-12-05-6726825d.pth --out fid.json

fid compares two sets of images: FID (at several radii of blur: --blur 0,1,2,4,8), KID and the
inception score. A set is a folder, one that `sample` has written too, a file of statistics, or a
bundle, which samples an image for every caption of --real or each of --prompts.

  python -m cogview_jax.evaluate --benchmark tokenizer --bundle runs/codec/bundle --real photos \\
      --features lpips=alexnet.ckpt --out tokenizer.json

tokenizer measures what an image tokenizer gives back, pictures a model on captioned images of
your own (--real), table1 and figure9 what the paper reports of the best of several candidates, and
worst finds captions that do not fit their images; see docs/guides/evaluation.md. Interrupted, the
same command goes on. Of all but shapes, emoji, style, fashion, attention and figure10 it may be
started several times, on one machine or on many that share --out: the processes divide the work,
process 0 writes the report, and it is the same. Any of them may be killed, and others may join.

  python -m cogview_jax.evaluate --benchmark attention --bundle runs/demo/bundle \\
      --prompts configs/demo_prompts.txt --out attention.json

attention shows what each attention head looks at: a position, the text, or a few tokens.

  python -m cogview_jax.evaluate --benchmark emoji --bundle runs/emoji/bundle \\
      --features efficientnet_lite0=efficientnet-lite0-57934424.pth --out emoji.json

emoji uses pairs of a concept and a style of the embedded emoji that training has seen, and held-out
ones: the share of images, or of captions, that are right, or the errors of upsampled images.

  python -m cogview_jax.evaluate --benchmark style --bundle runs/style/lora/bundle \\
      --real runs/style/data/held_out --prompt "{object} of outline style" --out style.json

style asks a bundle that was finetuned to a style for objects that it has not seen in that style:
the share of images whose style, concept, and both are right.

  python -m cogview_jax.evaluate --benchmark figure10 --study study --real photos \\
      --num_prompts 50 --system ours=runs/a/bundle --system theirs=samples \\
      --system truth=codec:runs/a/bundle --out figure10.json

figure10 makes a study of images of several systems, which people rate with `serve --study study`;
the same command then writes the scores. See docs/guides/human_evaluation.md.
"""

from absl import flags

from cogview_jax.commands.sampling_flags import sampling_flags
from cogview_jax.evaluation.benchmark import (
    BLUR_KERNELS,
    BLUR_SETS,
    RESIZES,
    ImageOptions,
    Options,
    available,
    load_benchmark,
)
from cogview_jax.runtime import command_line, flag_kinds
from cogview_jax.runtime.bounds import MOST_CANDIDATES, MOST_PROMPTS, MOST_ROWS, need_flag
from cogview_jax.runtime.processes import leave_when_asked

BUNDLE = flag_kinds.address_flag(
    "bundle",
    "the bundle's folder, a run's workdir, one of its checkpoints, or the address of a bundle; fid"
    " needs none",
)
OUT = flag_kinds.path_flag("out", "the JSON file to write")
BENCHMARK = flags.DEFINE_enum(
    "benchmark",
    "shapes",
    list(available()),
    "; ".join(f"{name}: {description}" for name, description in available().items()),
)
NUM_PROMPTS = flags.DEFINE_integer(
    "num_prompts",
    300,
    "captions or images that are measured; of shapes and emoji in each of their two splits, of"
    " style as many images of each object",
)
SEED = flags.DEFINE_integer("seed", 0, "of the prompts and of sampling")
SAMPLING = sampling_flags()
RERANK_WITH = flag_kinds.address_flag("rerank_with", "a caption bundle that chooses the best")
CANDIDATES = flags.DEFINE_integer(
    "candidates", None, "images for each prompt to choose from, with --rerank_with 8 by default"
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "images at a time; by default what free memory has room for"
)
PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "bfloat16", "float16", "float16_pure", "int8"],
    "of the arithmetic",
)
REAL = flag_kinds.path_flag(
    "real", "real images: a folder, or of fid a file of statistics, a bundle or a workdir"
)
GENERATED = flag_kinds.path_flag(
    "generated",
    "of fid: what is judged: a folder of images, a file of statistics, a bundle or a workdir",
)
FEATURES = flag_kinds.pairs_flag(
    "features", "a feature network and the file of its weights, such as inception=FILE"
)
LIST_FEATURES = flags.DEFINE_boolean(
    "list_features", False, "say what each feature network needs and where people get it, and end"
)
CAPTIONS = flag_kinds.path_flag(
    "captions",
    "of table1, figure9, figure10, pictures, worst and attention: a file like COCO's"
    " captions_val2014.json, of images in --real; or tfds:NAME:SPLIT, a TensorFlow data set"
    " prepared in --real or TFDS_DATA_DIR, such as tfds:coco_captions/2014:val",
)
PROMPT = flags.DEFINE_multi_string(
    "prompt",
    [],
    "of pictures: what to show images of; of fid, attention and figure10: what a bundle samples; of"
    " style: a pattern with {object}",
)
PROMPTS = flag_kinds.path_flag("prompts", "a file with one such prompt a line")
RESIZE = flags.DEFINE_enum(
    "resize",
    "clean",
    RESIZES,
    "how images are resized for the network: as clean-fid, pytorch-fid or torch-fidelity do, or as"
    " CogView's own evaluation, whose numbers compare with no others",
)
BLUR = flag_kinds.numbers_flag("blur", (0,), "radii of FID-k in pixels, such as 0,1,2,4,8")
BLUR_KERNEL = flags.DEFINE_enum(
    "blur_kernel",
    "pil",
    BLUR_KERNELS,
    "whose Gaussian the radii are of: Pillow's and scipy's take them for the standard deviation,"
    " Lafite's for half the kernel, which is about half the blur",
)
BLUR_SETS_FLAG = flags.DEFINE_enum(
    "blur_sets", "both", BLUR_SETS, "whether FID-k blurs both sets or the real one alone"
)
FID_INFINITY = flags.DEFINE_boolean(
    "fid_infinity", False, "extrapolate FID to infinitely many images, too"
)
PRECISION_RECALL = flags.DEFINE_boolean(
    "precision_recall", False, "measure precision and recall of the features, too"
)
SAVE_STATISTICS = flag_kinds.path_flag(
    "save_statistics",
    "the file (.npz) in which the statistics of --real are kept, at the first radius of --blur",
)
STUDY = flag_kinds.path_flag(
    "study",
    "of figure10: the folder of a study that people rate with `serve --study`; a new one is made",
)
SYSTEM = flag_kinds.pairs_flag(
    "system",
    "of a new study: the name of a system, and what makes its images: a bundle, a folder of"
    " captioned images such as `sample` writes, or codec:BUNDLE for the true images (--real)"
    " through its image tokenizer",
)


def main() -> None:
    """Flags in, one job."""
    if LIST_FEATURES.value:
        from cogview_jax.evaluation.features import listed_features

        print(listed_features())
        return
    command_line.need(OUT)
    # Before the libraries are loaded that take seconds.
    need_flag(NUM_PROMPTS, MOST_PROMPTS)
    need_flag(CANDIDATES, MOST_CANDIDATES)
    need_flag(BATCH_SIZE, MOST_ROWS)
    prompts = tuple(PROMPT.value)
    if PROMPTS.value:
        from cogview_jax.commands.sample_inputs import read_prompts

        prompts = tuple(read_prompts(PROMPT.value, PROMPTS.value))
    options = Options(
        count=NUM_PROMPTS.value,
        seed=SEED.value,
        settings=SAMPLING(),
        batch_size=BATCH_SIZE.value,
        precision=PRECISION.value,
        rerank_with=RERANK_WITH.value,
        candidates=CANDIDATES.value or (8 if RERANK_WITH.value else 1),
        images=ImageOptions(
            real=REAL.value,
            generated=GENERATED.value,
            features=dict(FEATURES.value),
            resize=RESIZE.value,
            blur=BLUR.value,
            blur_kernel=BLUR_KERNEL.value,
            blur_sets=BLUR_SETS_FLAG.value,
            fid_infinity=FID_INFINITY.value,
            precision_recall=PRECISION_RECALL.value,
            save_statistics=SAVE_STATISTICS.value,
            captions=CAPTIONS.value,
            prompts=prompts,
            study=STUDY.value,
            systems=tuple(SYSTEM.value),
        ),
    )
    leave_when_asked()
    from cogview_jax.evaluation.accepted_flags import OF_BENCHMARKS, check_flags
    from cogview_jax.evaluation.report import evaluate

    benchmark = load_benchmark(BENCHMARK.value)
    given = (name for name in OF_BENCHMARKS if flags.FLAGS[name].present)
    check_flags(benchmark, given, options.images.features)
    evaluate(benchmark, BUNDLE.value, OUT.value, options)
