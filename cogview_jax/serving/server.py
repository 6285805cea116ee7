"""From bundles to a server that answers, and back."""

import os
from contextlib import closing
from pathlib import Path

from cogview_jax.checkpoints.bundle_folder import bundle_folder
from cogview_jax.checkpoints.step_bundle import located
from cogview_jax.pipeline.load import load, load_scorer, open_checked
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.progress import waiting
from cogview_jax.serving.app import make_app
from cogview_jax.serving.listening import answer, bound_socket
from cogview_jax.serving.service import Models, Service
from cogview_jax.serving.settings import KEY_VARIABLE, Address, Limits


def serve(
    bundle: str,
    rerank_with: str | None,
    upsample_with: str | None,
    host: str,
    port: int,
    limits: Limits,
    rows: int | None,
    precision: str,
) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests that it has.

    Raises:
        InputError: a bundle or a number is wrong, or the port is taken.
    """
    address = Address(host, port, os.environ.get(KEY_VARIABLE) or None)
    with closing(bound_socket(address)) as bound:
        models = load_models(bundle, rerank_with, upsample_with, precision)
        service = Service(models, limits, rows)
        waiting("compiling")(service.start)()
        app = make_app(service, address)
        answer(app, models.name, bound, limits.seconds, service.close)


def load_models(
    bundle: str, rerank_with: str | None, upsample_with: str | None, precision: str
) -> Models:
    """Reads the bundles; all are checked before the first is read."""
    open_checked(bundle, EVERY_PART, "text_to_image")
    scorer, upsampler = None, None
    if rerank_with is not None:
        open_checked(rerank_with, EVERY_PART, "caption")
    if upsample_with is not None:
        open_checked(upsample_with, EVERY_PART)
    folder = Path(located(bundle))
    base = load(folder, dtype=precision, needs=EVERY_PART, task="text_to_image")
    if rerank_with is not None:
        scorer = load_scorer(located(rerank_with), dtype=precision)
    if upsample_with is not None:
        upsampler = load(located(upsample_with), dtype=precision, needs=EVERY_PART)
    place = bundle_folder(bundle).resolve()
    name = place.parent.name if place.name == "bundle" else place.name
    return Models(name, base, scorer, upsampler)
