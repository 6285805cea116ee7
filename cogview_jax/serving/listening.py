"""From an application to a server that answers until it is told to end."""

import os
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import log
from cogview_jax.serving.settings import Address

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def bound_socket(address: Address) -> socket.socket:
    """A socket at the address, before minutes are spent on loading; nobody is let in yet.

    Raises:
        InputError: the port is taken, or the address is none of this machine.
    """
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


def answer(
    app: ASGIApp,
    name: str,
    bound: socket.socket,
    seconds: float,
    drain: Callable[[], Any] = lambda: None,
    close: Callable[[], Any] = lambda: None,
) -> None:
    """Answers on a socket until SIGTERM or SIGINT comes, then finishes the requests that it has.

    Args:
        app: answers.
        name: of what is served, for the line that says where.
        bound: of `bound_socket`.
        seconds: how long requests may take.
        drain: is called, again and again, from the signal on: no more work is to be taken.
        close: is called at the end, however it comes; no signal interrupts it.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=int(seconds) + 1,
        limit_concurrency=1024,
        h11_max_incomplete_event_size=1 << 16,
    )
    server = _Server(config, drain)
    # uvicorn raises the signal again once it has shut down, which would end the process by it.
    before: dict[Any, Any] = {each: signal.signal(each, _heard) for each in SIGNALS}
    try:
        bound.listen(2048)  # what comes before uvicorn answers waits
        host, port = bound.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        log(f"{name} is ready: http://{shown}:{port} (Ctrl-C ends it)")
        server.run([bound])
    finally:
        close()
        for each, handler in before.items():
            signal.signal(each, handler)


class _Server(uvicorn.Server):
    """Answers until the requests that it has are finished, and refuses more, once a signal comes.

    uvicorn alone would close its socket at once: nobody could ask for its health any more.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Any]):
        super().__init__(config)
        self.drain, self.told = drain, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end; a second signal ends it at once."""
        self.should_exit = self.force_exit = self.told
        self.told = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is over; uvicorn asks ten times a second."""
        if self.told:
            self.drain()
            # `/health` is a task too, for a moment.
            self.should_exit = self.should_exit or not self.server_state.tasks
        return await super().on_tick(counter)


def _heard(number: int, frame: Any) -> None:
    """A signal that uvicorn has obeyed already."""
