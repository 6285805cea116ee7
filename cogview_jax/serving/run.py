"""The images of one request on their way from the loop to the client."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from cogview_jax.runtime.errors import InputError
from cogview_jax.sampling.decode import OPEN
from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.serving.api_error import ApiError
from cogview_jax.serving.image_request import ImageRequest
from cogview_jax.serving.jobs import ImageJob, Refused
from cogview_jax.serving.pictures import base64_png
from cogview_jax.serving.service import ALONE, Service


@dataclass(frozen=True)
class Picture:
    """An image for the client.

    Attributes:
        index: which of the request's it is.
        png: its file in base64.
        size: its sides in pixels.
        frame: the number of a partial image; None for a finished one.
        score: CapLoss, where it was chosen among candidates.
    """

    index: int
    png: str
    size: int
    frame: int | None = None
    score: float | None = None


class Run:
    """Samples the images of a request, once `begin` has been called.

    Attributes:
        tokens: how many the prompt has; 0 before.
        warning: what the client is told of a prompt that is cut; None of others.
    """

    def __init__(
        self, service: Service, request: ImageRequest, client: str, given: np.ndarray | None = None
    ):
        """Nothing is sampled yet.

        Args:
            service: samples.
            request: what is asked for.
            client: whose it is; clients take turns.
            given: codes that are known, see `ContinuousBatch.add`.
        """
        self.service, self.request, self.client, self.given = service, request, client, given
        self.tokens = 0
        self.warning: str | None = None
        self._events: asyncio.Queue[tuple[int, np.ndarray | Refused]] = asyncio.Queue()
        self._jobs: dict[int, ImageJob] = {}

    async def begin(self) -> None:
        """Puts the images into the queue.

        Raises:
            ApiError: the prompt cannot be used.
            Refused: there is no place for them.
        """
        request, service = self.request, self.service
        generation = service.models.base.generation
        try:
            rows = await asyncio.to_thread(generation.prompt_rows, [request.prompt])
            self.warning = generation.prompts.warning(request.prompt)
        except InputError as error:
            raise ApiError(400, str(error), "prompt") from error
        prompt, loop = rows[request.prompt], asyncio.get_running_loop()
        shown = {*request.frames(service.offer.grid), service.offer.grid}
        self.tokens = len(prompt)
        deadline = time.monotonic() + service.limits.seconds

        def tell(index: int, found: np.ndarray | Refused) -> None:
            if isinstance(found, np.ndarray) and len(found) not in shown:
                return
            with contextlib.suppress(RuntimeError):  # of a loop that is closed
                loop.call_soon_threadsafe(self._events.put_nowait, (index, found))

        jobs = {
            index: ImageJob(
                SamplingRequest(request.prompt, request.seed, index, request.sampling),
                prompt,
                self.client,
                functools.partial(tell, index),
                functools.partial(tell, index),
                self.given,
                deadline,
            )
            for index in request.indices
        }
        service.engine.submit(list(jobs.values()))
        self._jobs = jobs

    def cancel(self) -> None:
        """Gives up the images that are not finished."""
        if self._jobs:
            self.service.engine.cancel(list(self._jobs.values()))
            self._jobs = {}

    async def pictures(self) -> AsyncIterator[Picture]:
        """The images as they are finished, and partial ones; of candidates the best, at the end.

        Raises:
            ApiError, Refused: there will be no more.
        """
        service, request = self.service, self.request
        model, grid = service.models.base, service.offer.grid
        frames, candidates = request.frames(grid), {}

        def preview(index: int, codes: np.ndarray) -> Picture:
            return self._picture(index, model.generation.preview(codes), frames[len(codes)])

        def image(index: int, codes: np.ndarray) -> Picture:
            return self._picture(index, model.decode(codes[None])[0])

        async for index, codes in self._codes():
            if len(codes) < grid:
                yield await service.in_thread(functools.partial(preview, index, codes))
                continue
            service.metrics.count("cogview_images_total", "Images that were sampled.")
            if request.candidates == 1 and not request.upsampled:
                yield await service.in_thread(functools.partial(image, index, codes))
                continue
            pixels = (await service.in_thread(functools.partial(model.decode, codes[None])))[0]
            if request.candidates > 1:
                candidates[index] = pixels
            else:
                yield await self._finished(index, pixels)
        if candidates:
            for index, score in await self._ranked(candidates):
                yield await self._finished(index, candidates[index], score)

    async def _codes(self) -> AsyncIterator[tuple[int, np.ndarray]]:
        """Numbers of images and their codes so far; each comes once, whatever the device does."""
        seen = dict.fromkeys(self._jobs, 0)
        while self._jobs:
            index, found = await self._events.get()
            if isinstance(found, Refused):
                raise found
            if len(found) > seen[index]:
                seen[index] = len(found)
                if len(found) == self.service.offer.grid:
                    del self._jobs[index]
                yield index, found

    async def _ranked(self, candidates: dict[int, np.ndarray]) -> list[tuple[int, float]]:
        """The best n of the candidates, the best first, and their scores."""
        scorer = self.service.models.scorer
        assert scorer is not None, "a request for candidates is refused without"
        order = sorted(candidates)
        pixels = np.stack([candidates[index] for index in order])
        texts = [self.request.prompt] * len(order)
        scores = await self.service.beside(lambda: scorer.score(pixels, texts, batch_size=ALONE))
        best = np.argsort(scores, kind="stable")[: self.request.n]
        return [(order[i], float(scores[i])) for i in best]

    async def _finished(
        self, index: int, pixels: np.ndarray, score: float | None = None
    ) -> Picture:
        if self.request.upsampled:
            upsampler, prompt = self.service.models.upsampler, self.request.prompt
            assert upsampler is not None, "such a size is refused without"
            seed = self.request.seed
            larger = await self.service.beside(
                lambda: upsampler.super_resolve(pixels[None], [prompt], seed, batch_size=ALONE)
            )
            pixels = np.asarray(larger[0])
        return self._picture(index, pixels, None, score)

    def _picture(
        self,
        index: int,
        pixels: np.ndarray,
        frame: int | None = None,
        score: float | None = None,
    ) -> Picture:
        facts = dict(self.request.facts(self.service.offer.name, index))
        if self.given is not None:
            facts["kept_codes"] = int((self.given != OPEN).sum())
        return Picture(index, base64_png(pixels, facts), len(pixels), frame, score)
