"""Serves a bundle: a page, and an HTTP API as OpenAI's clients expect it.

  python -m cogview_jax.serve --bundle emoji

  python -m cogview_jax.serve --bundle emoji --rerank_with emoji_caption \\
      --upsample_with emoji_superres --port 8000

Then http://127.0.0.1:8000 is the page, and http://127.0.0.1:8000/v1 what a client of OpenAI's API
takes for its base_url:

  POST /v1/images/generations  images of a prompt, as a whole or as they come (stream)
  POST /v1/images/edits        images of which a part is given
  POST /v1/images/upscales     images of twice the size, with --upsample_with
  POST /v1/captions, /v1/scores  texts of images, with --rerank_with
  GET  /v1/models, /health, /metrics, /openapi.json

The image of a prompt, a seed and an index is the one that `cogview sample` gives, whatever else is
served at the same time. What a request leaves open is as the bundle recommends.

  python -m cogview_jax.serve --study study

lets people rate the images of a study (evaluate --benchmark figure10). Their ratings are in
study/ratings; the page goes on where a rater has stopped.

Only programs of this machine are answered. For others, --host names an address of this machine and
the environment variable COGVIEW_API_KEY a key that every request has to send. SIGTERM or Ctrl-C
ends the server once it has finished what it was asked for.
"""

from absl import flags

from cogview_jax.runtime import flag_kinds
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import distributed_flags
from cogview_jax.sampling.options import MOST_WINDOW

BUNDLE = flag_kinds.address_flag(
    "bundle",
    "the bundle that samples images: its folder, a run's workdir, one of its checkpoints, the name"
    " of a shipped bundle, such as emoji, or an address: hf://OWNER/NAME, gs://BUCKET/DIR,"
    " s3://BUCKET/DIR, https://HOST/DIR",
)
STUDY = flag_kinds.path_flag(
    "study",
    "instead of a bundle: the folder of a study, made by evaluate --benchmark figure10, for people"
    " to rate",
)
RERANK_WITH = flag_kinds.address_flag(
    "rerank_with", "a caption bundle: it chooses among candidates, and captions and scores images"
)
UPSAMPLE_WITH = flag_kinds.address_flag(
    "upsample_with", "a bundle of super-resolution: images of twice the size can be asked for"
)
HOST = flags.DEFINE_string("host", "127.0.0.1", "the address to listen on")
PORT = flags.DEFINE_integer(
    "port", 8000, "the port to listen on, 0 for any that is free", lower_bound=0, upper_bound=65535
)
ROWS = flags.DEFINE_integer(
    "rows",
    None,
    "rows that are sampled at a time, a power of two: an image takes one, with guidance two. By"
    " default 32, or what free memory has room for",
)
PARALLEL_WINDOW = flags.DEFINE_integer(
    "parallel_window",
    None,
    "how many codes of an image the model guesses at once while at most 8 rows are at work, which"
    " changes none of them; by default what the bundle recommends, else 0: one after the other",
    lower_bound=0,
    upper_bound=MOST_WINDOW,
)
MOST_IMAGES = flags.DEFINE_integer(
    "most_images", 16, "images that a request may sample, candidates among them"
)
MOST_WAITING = flags.DEFINE_integer(
    "most_waiting", 256, "images that may wait; requests beyond are refused"
)
SECONDS = flags.DEFINE_float("seconds", 300.0, "how long a request may take")
REQUESTS_PER_MINUTE = flags.DEFINE_integer(
    "requests_per_minute", 600, "requests that one address may send"
)
PRECISION = flags.DEFINE_enum(
    "precision",
    "float32",
    ["float32", "bfloat16", "float16", "float16_pure", "int8"],
    "of the arithmetic",
)
TENSOR = flags.DEFINE_integer(
    "tensor",
    1,
    "devices over which the matrices of a model are split: 1, or 0 for all that there are, those"
    " of other processes too",
    lower_bound=0,
)
START = distributed_flags()


def main() -> None:
    """Flags in, one server."""
    from cogview_jax.serving.extra import need_extra
    from cogview_jax.serving.settings import Limits

    need_extra()
    limits = Limits(MOST_IMAGES.value, MOST_WAITING.value, SECONDS.value, REQUESTS_PER_MINUTE.value)
    if STUDY.value is not None:
        _check_alone()
        from cogview_jax.serving.study_app import serve_study

        serve_study(STUDY.value, HOST.value, PORT.value, limits)
        return
    if BUNDLE.value is None:
        raise InputError(
            "--bundle or --study is missing: give a bundle to serve, such as --bundle emoji, or the"
            " folder of a study for people to rate"
        )
    START()
    from cogview_jax.serving.server import serve

    serve(
        BUNDLE.value,
        RERANK_WITH.value,
        UPSAMPLE_WITH.value,
        HOST.value,
        PORT.value,
        limits,
        ROWS.value,
        PARALLEL_WINDOW.value,
        PRECISION.value,
        TENSOR.value,
    )


_OF_BUNDLES = (
    *(BUNDLE, RERANK_WITH, UPSAMPLE_WITH, ROWS, PARALLEL_WINDOW),
    *(MOST_IMAGES, MOST_WAITING, PRECISION, TENSOR),
)


def _check_alone() -> None:
    """InputError where a flag of a bundle is given beside a study."""
    for flag in _OF_BUNDLES:
        if flag.value != flag.default:
            raise InputError(f"--study needs no bundle: leave --{flag.name} out")
