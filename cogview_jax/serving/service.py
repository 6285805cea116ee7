"""The models of a server, and what it does with them."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import jax
import numpy as np

from cogview_jax.pipeline.cogview import CogView
from cogview_jax.runtime.errors import InputError
from cogview_jax.runtime.processes import log
from cogview_jax.sampling.batching import batch_rows
from cogview_jax.sampling.continuous import FEWEST, ContinuousBatch
from cogview_jax.serving.api_error import ApiError, refusal
from cogview_jax.serving.engine_loop import EngineLoop
from cogview_jax.serving.image_request import Offer
from cogview_jax.serving.jobs import DeviceFailed, QueueFull
from cogview_jax.serving.metrics import Metrics
from cogview_jax.serving.orders import BASE, BATCH, SCORER, UPSAMPLER, Orders
from cogview_jax.serving.settings import Limits

#: Rows of the batch where nobody says and memory has room, and those that may be asked for.
ROWS, MOST_ROWS = 32, 1024
#: Calls of the models beside the loop that may wait.
MOST_CALLS = 64
#: Images of these calls that are computed at once: more would be other programs, not yet compiled.
ALONE = 1

T = TypeVar("T")


@dataclass(frozen=True)
class Models:
    """What a server loads.

    Attributes:
        name: what clients call it.
        base: samples images.
        scorer: of captions; chooses among candidates.
        upsampler: makes images larger.
    """

    name: str
    base: CogView
    scorer: CogView | None = None
    upsampler: CogView | None = None

    def __post_init__(self) -> None:
        size = self.base.codec.config.image_size
        if self.scorer is not None and self.scorer.codec.config.image_size != size:
            raise InputError(
                f"--bundle samples images of {size} pixels, --rerank_with reads images of"
                f" {self.scorer.codec.config.image_size}"
            )
        if self.upsampler is not None and self.larger is None:
            sizes = " or ".join(map(str, self.upsampler.super_resolution.sizes))
            log(
                f"--upsample_with takes images of {sizes} pixels, and --bundle samples images of"
                f" {size}: it is for /v1/images/upscales alone"
            )

    @property
    def larger(self) -> int | None:
        """The size to which sampled images can be upsampled, if they can."""
        size = self.base.codec.config.image_size
        if self.upsampler is None or size not in self.upsampler.super_resolution.sizes:
            return None
        return 2 * size

    @property
    def upscales(self) -> tuple[tuple[int, ...], bool]:
        """The sizes of images that can be upsampled, and whether that needs a text."""
        if self.upsampler is None:
            return (), False
        text = self.upsampler.layout.region("text").length
        return self.upsampler.super_resolution.sizes, text > 0


class Service:
    """The models at work: one thread samples, another does what is asked beside it."""

    def __init__(
        self,
        models: Models,
        limits: Limits,
        rows: int | None = None,
        orders: Orders | None = None,
        window: int | None = None,
    ):
        """Takes memory; `start` compiles.

        Args:
            models: see there.
            limits: of clients.
            rows: of the batch, see `rows_of`.
            orders: of a model that is split over several devices.
            window: of parallel decoding while few rows are at work; None as the bundle recommends.

        Raises:
            InputError: the number of rows is none, memory has no room for them, or the model
                cannot have a window.
        """
        base = models.base
        self.orders = orders = orders or Orders()
        self.models, self.limits, self.metrics = _ordered(models, orders), limits, Metrics()
        grid = base.codec.config.grid
        sampling = base.generation.default_sampling
        if window is not None:
            sampling = replace(sampling, parallel_window=window)
        # A row of codes at a time where there is no window: with shorter steps fewer requests begin
        # together, which costs more than the rows that wait for the end of a step (bench/serve.py).
        with orders.together():
            count = orders.agreed(_rows_of(base, rows))
            batch = ContinuousBatch(base.parts.engine, count, grid, sampling.parallel_window)
        self.engine = EngineLoop(orders.ordered("batch", batch, BATCH), grid, limits.waiting)
        size = base.codec.config.image_size
        self.offer = Offer(
            models.name,
            size,
            models.larger,
            grid,
            models.scorer is not None,
            sampling,
            limits.images,
            *models.upscales,
            base.parts.example_prompts,
        )
        self.created, self.ready = int(time.time()), False
        self._beside = ThreadPoolExecutor(1, "beside the loop")
        self._calls = 0
        for name, help, value in (
            ("cogview_images_waiting", "Images that wait for rows.", lambda: self.engine.waiting),
            ("cogview_rows_used", "Rows at work.", lambda: self.engine.rows_used),
            ("cogview_rows", "Rows there are.", lambda: batch.rows),
            ("cogview_healthy", "Whether the device works.", lambda: self.engine.healthy),
        ):
            self.metrics.gauge(name, help, value)

    def start(self) -> None:
        """Compiles what requests run, then takes them."""
        models = self.models
        self.engine.start()
        image = models.base.decode(np.zeros((1, self.offer.grid, self.offer.grid), np.int32))
        models.base.encode(image)
        if models.scorer is not None:
            models.scorer.captioning.compile()
        if models.upsampler is not None:
            models.upsampler.super_resolution.compile()
        self.ready = True

    def drain(self) -> None:
        """Takes no more requests; those that there are go on."""
        self.engine.refuse()

    def close(self) -> None:
        """Finishes what was begun."""
        self.ready = False
        self.engine.close(self.limits.seconds)
        self._beside.shutdown(cancel_futures=True)
        self.orders.end()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Work that takes a while, in a thread of its own; a failure is that of a request."""
        return await self._attempt(asyncio.to_thread(work))

    async def beside(self, work: Callable[[], T]) -> T:
        """What a model does beside the loop, one call after the other.

        Raises:
            ApiError: too many calls wait, or the device has failed.
        """
        if self._calls >= MOST_CALLS:
            raise refusal(QueueFull(f"{self._calls} requests wait, and no more may"))
        self._calls += 1
        try:
            loop = asyncio.get_running_loop()
            return await self._attempt(loop.run_in_executor(self._beside, work))
        finally:
            self._calls -= 1

    @staticmethod
    async def _attempt(work: Any) -> Any:
        try:
            return await work
        except InputError as error:
            raise ApiError(400, str(error)) from error
        except jax.errors.JaxRuntimeError as error:
            log(f"the device has failed: {error}")
            raise refusal(DeviceFailed("the device has failed")) from error


def _ordered(models: Models, orders: Orders) -> Models:
    """The same models, whose calls are made on all processes."""
    scorer, upsampler = models.scorer, models.upsampler
    if orders.mesh is None:
        return models
    return replace(
        models,
        base=orders.ordered("base", models.base, BASE),
        scorer=scorer and orders.ordered("scorer", scorer, SCORER),
        upsampler=upsampler and orders.ordered("upsampler", upsampler, UPSAMPLER),
    )


def _rows_of(base: CogView, rows: int | None) -> int:
    """The rows of the batch: those that were asked for, or what free memory has room for."""
    if rows is not None and (not FEWEST <= rows <= MOST_ROWS or rows & (rows - 1)):
        raise InputError(f"--rows {rows}: expected a power of two from {FEWEST} to {MOST_ROWS}")
    model, length = base.parts.engine.model, base.layout.length
    fit = batch_rows(model, rows, length, ROWS if rows is None else rows)
    return max(FEWEST, min(fit, ROWS)) if rows is None else rows
