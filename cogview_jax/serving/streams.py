"""Responses that end when their client leaves: server-sent events, and work that is awaited."""

import asyncio
import json
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cogview_jax.runtime.processes import log
from cogview_jax.serving.api_error import ApiError, refusal, unknown
from cogview_jax.serving.jobs import Refused

#: Seconds without an event after which a comment shows that the server is there.
HEARTBEAT = 10.0

T = TypeVar("T")


class ClientGone(Exception):
    """The client has left; nobody reads the response."""


class EventStream(StreamingResponse):
    """Server-sent events; `close` is called at the end, however it comes."""

    def __init__(self, events: AsyncIterator[dict[str, Any]], close: Callable[[], None]):
        """Each event has its `type`, which is its name too: OpenAI's client reads that alone."""
        super().__init__(_lines(events), media_type="text/event-stream")
        self.headers["cache-control"] = "no-store"
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


async def _lines(events: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    following: asyncio.Future | None = None
    try:
        while True:
            if following is None:
                following = asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({following}, timeout=HEARTBEAT)
            if not done:
                yield ": waiting\n\n"
                continue
            future, following = following, None
            event = future.result()
            yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
    except StopAsyncIteration:
        return
    except (ApiError, Refused) as error:
        problem = error if isinstance(error, ApiError) else refusal(error)
        yield f"event: error\ndata: {json.dumps(problem.body)}\n\n"
    except Exception:
        log(traceback.format_exc())
        yield f"event: error\ndata: {json.dumps(unknown().body)}\n\n"
    finally:
        if following is not None:
            following.cancel()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client leaves: then ClientGone."""
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    gone: asyncio.Future[None] = asyncio.ensure_future(_gone(request))
    both: set[asyncio.Future] = {task, gone}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
