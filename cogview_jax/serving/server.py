"""From bundles to a server that answers, and back."""

import os
import signal
import socket
from contextlib import closing, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import uvicorn

from cogview_jax.checkpoints.shipped import bundle_folder
from cogview_jax.checkpoints.step_bundle import located
from cogview_jax.pipeline.load import load, load_scorer, open_checked
from cogview_jax.pipeline.parts import EVERY_PART
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.mesh import MeshConfig, make_mesh
from cogview_jax.runtime.processes import is_primary, log
from cogview_jax.runtime.progress import waiting
from cogview_jax.serving.app import make_app
from cogview_jax.serving.orders import Orders
from cogview_jax.serving.service import Models, Service
from cogview_jax.serving.settings import KEY_VARIABLE, Address, Limits

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def serve(
    bundle: str,
    rerank_with: str | None,
    upsample_with: str | None,
    host: str,
    port: int,
    limits: Limits,
    rows: int | None,
    precision: str,
    tensor: int,
) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the requests that it has.

    Of several processes the first does; the others compute with it until it ends.

    Raises:
        InputError: a bundle or a number is wrong, or the port is taken.
    """
    address = Address(host, port, os.environ.get(KEY_VARIABLE) or None)
    with closing(_bound(address)) if is_primary() else nullcontext() as bound:
        orders = Orders(_mesh(tensor))
        with orders.together():
            models = load_models(bundle, rerank_with, upsample_with, precision, orders.mesh)
        service = Service(models, limits, rows, orders)
        if bound is None:
            for each in SIGNALS:  # process 0 says when it is over
                signal.signal(each, signal.SIG_IGN)
            orders.follow()
            return
        waiting("compiling")(service.start)()
        run(service, address, bound)


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
    place = bundle_folder(Path(bundle)).resolve()
    name = place.parent.name if place.name == "bundle" else place.name
    return Models(name, base, scorer, upsampler)


def run(service: Service, address: Address, bound: socket.socket) -> None:
    """Answers on a socket until a signal comes, then finishes what it has."""
    config = uvicorn.Config(
        make_app(service, address),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=int(service.limits.seconds) + 1,
        limit_concurrency=1024,
        h11_max_incomplete_event_size=1 << 16,
    )
    server = _Server(config, service)
    # uvicorn raises the signal again once it has shut down, which would end the process by it.
    before: dict[Any, Any] = {each: signal.signal(each, _heard) for each in SIGNALS}
    try:
        bound.listen(2048)  # what comes before uvicorn answers waits
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        log(f"{service.offer.name} is ready: http://{shown}:{port} (Ctrl-C ends it)")
        server.run([bound])
    finally:
        service.close()
        for each, handler in before.items():
            signal.signal(each, handler)


def _mesh(tensor: int) -> jax.sharding.Mesh | None:
    """The devices that a model is split over; None where there is one."""
    devices = jax.device_count()
    if tensor in (0, devices) and devices > 1:
        return make_mesh(MeshConfig(data=1, fsdp=1, tensor=devices))
    if tensor > 1 or jax.process_count() > 1:
        raise InputError(f"--tensor {tensor}: expected 0 for all, which are {devices} devices")
    return None


def _bound(address: Address) -> socket.socket:
    """A socket at the address, before minutes are spent on loading; nobody is let in yet."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(found[0], socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(found[4])
        return bound
    except OSError as error:
        where = f"--host {address.host} --port {address.port}"
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise InputError(f"{where}: {reason}; choose another") from error


class _Server(uvicorn.Server):
    """Answers until the requests that it has are finished, and refuses more, once a signal comes.

    uvicorn alone would close its socket at once: nobody could ask for its health any more.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service, self.told = service, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end; a second signal ends it at once."""
        self.should_exit = self.force_exit = self.told
        self.told = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is over; uvicorn asks ten times a second."""
        if self.told:
            self.service.drain()
            # `/health` is a task too, for a moment.
            self.should_exit = self.should_exit or not self.server_state.tasks
        return await super().on_tick(counter)


def _heard(number: int, frame: Any) -> None:
    """A signal that uvicorn has obeyed already."""
