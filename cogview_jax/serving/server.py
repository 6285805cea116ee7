"""From bundles to a server that answers, and back."""

import os
import signal
from contextlib import closing, nullcontext
from pathlib import Path

import jax

from cogview_jax.checkpoints.bundle_folder import bundle_folder
from cogview_jax.checkpoints.step_bundle import located
from cogview_jax.pipeline.load import load, load_scorer, open_checked
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.processes import is_primary
from cogview_jax.runtime.progress import waiting
from cogview_jax.serving.app import make_app
from cogview_jax.serving.listening import SIGNALS, answer, bound_socket
from cogview_jax.serving.orders import Orders
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
    window: int | None,
    precision: str,
    tensor: int,
) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests that it has.

    Of several processes the first does; the others compute with it until it ends.

    Raises:
        InputError: a bundle or a number is wrong, or the port is taken.
    """
    address = Address(host, port, os.environ.get(KEY_VARIABLE) or None)
    with closing(bound_socket(address)) if is_primary() else nullcontext() as bound:
        orders = Orders(_mesh(tensor))
        with orders.together():
            models = load_models(bundle, rerank_with, upsample_with, precision, orders.mesh)
        service = Service(models, limits, rows, orders, window)
        if bound is None:
            for each in SIGNALS:  # process 0 says when it is over
                signal.signal(each, signal.SIG_IGN)
            orders.follow()
            return
        waiting("compiling")(service.start)()
        app = make_app(service, address)
        answer(app, models.name, bound, limits.seconds, service.drain, service.close)


def load_models(
    bundle: str,
    rerank_with: str | None,
    upsample_with: str | None,
    precision: str,
    mesh: jax.sharding.Mesh | None = None,
) -> Models:
    """Reads the bundles, split over the mesh; all are checked before the first is read."""
    open_checked(bundle, EVERY_PART, "text_to_image")
    scorer, upsampler = None, None
    if rerank_with is not None:
        open_checked(rerank_with, EVERY_PART, "caption")
    if upsample_with is not None:
        open_checked(upsample_with, EVERY_PART)
    folder = Path(located(bundle))
    base = load(folder, dtype=precision, mesh=mesh, needs=EVERY_PART, task="text_to_image")
    if rerank_with is not None:
        scorer = load_scorer(located(rerank_with), dtype=precision, mesh=mesh)
    if upsample_with is not None:
        upsampler = load(located(upsample_with), dtype=precision, mesh=mesh, needs=EVERY_PART)
    place = bundle_folder(bundle).resolve()
    name = place.parent.name if place.name == "bundle" else place.name
    return Models(name, base, scorer, upsampler)


def _mesh(tensor: int) -> jax.sharding.Mesh | None:
    """The devices that a model is split over; None where there is one."""
    devices = jax.device_count()
    if tensor in (0, devices) and devices > 1:
        return make_mesh(MeshConfig(data=1, fsdp=1, tensor=devices))
    if tensor > 1 or jax.process_count() > 1:
        raise InputError(f"--tensor {tensor}: expected 0 for all, which are {devices} devices")
    return None
