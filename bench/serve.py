"""Images a second of `cogview serve` with several clients, as a share of those of `cogview sample`.

    .venv/bin/python bench/serve.py                      # 16 clients, the bundle emoji
    .venv/bin/python bench/serve.py --clients 4 --each 8

The server runs in this process and is asked over HTTP. The clients are threads of a process of
their own, each of which asks for one image after the other over one connection. `sample` makes the
same images in batches of as many as there are clients. Both are measured in turns, so that other
work on the machine slows both alike; the median of the shares is what counts. On a machine that
others use the CPU time of the server tells more than the clock; with that of the clients it is
reported too. Every image is compared with the one that `sample` makes.

Then it measures how long a client waits for an image, alone and beside others, and how long one
that is alone waits for its first row.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import multiprocessing
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import uvicorn
from PIL import Image

from cogview_jax.pipeline.cogview import CogView
from cogview_jax.pipeline.load import load
from cogview_jax.sampling.engine import SamplingRequest
from cogview_jax.serving.app import make_app
from cogview_jax.serving.service import Models, Service
from cogview_jax.serving.settings import Address, Limits

WORDS = ("a blue butterfly", "a red heart", "a green car", "a star")
#: Clients beside which an image may take twice the time that it takes alone.
FEW = 4


class Times(NamedTuple):
    """Seconds of a turn, and CPU seconds of this process and of the clients."""

    seconds: float
    cpu: float
    clients: float = 0.0


def main() -> None:
    """Prints the shares and the times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="emoji")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--each", type=int, default=4, help="images of each client in a turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    model = load(arguments.bundle)
    service = Service(Models(arguments.bundle, model), Limits(requests_per_minute=1_000_000))
    service.start()
    wanted = [
        [(f"{WORDS[(i + k) % len(WORDS)]} {i}", 100 * i + k) for k in range(arguments.each)]
        for i in range(arguments.clients)
    ]
    with server(service) as port, multiprocessing.get_context("spawn").Pool(1) as clients:
        throughput(model, clients, port, wanted, arguments.turns)
        latency(model, clients, port, wanted, arguments.turns)
    service.close()


def throughput(model: CogView, clients, port: int, wanted: list, turns: int) -> None:
    """Prints the shares of turns."""
    shares, count = [], sum(map(len, wanted))
    for turn in range(turns + 1):
        sampled, own = timed(lambda: sample(model, wanted))
        served, (found, _, cpu) = timed(lambda: clients.apply(ask_all, (port, wanted)))
        served = served._replace(clients=cpu)
        assert all(np.array_equal(own[key], pixels(item)) for key, item in found)
        if turn:  # the first compiles what sample runs
            shares.append(
                (
                    sampled.seconds / served.seconds,
                    sampled.cpu / served.cpu,
                    sampled.cpu / (served.cpu + served.clients),
                )
            )
            print(
                f"sample {count / sampled.seconds:6.2f} images/s, serve"
                f" {count / served.seconds:6.2f} images/s; {told(shares[-1])}",
                flush=True,
            )
    medians = [statistics.median(column) for column in zip(*shares, strict=True)]
    print(f"medians of {turns} turns: {told(medians)}")


def told(shares) -> str:
    """The shares in words."""
    clock, server, both = shares
    return f"share {clock:.2f}, by CPU time {server:.2f}, with that of clients {both:.2f}"


def latency(model: CogView, clients, port: int, wanted: list, turns: int) -> None:
    """Prints how long clients wait for images and for a first row, and what that takes at least."""
    alone, beside, first, rows, batch = [], [], [], [], []
    few = [images[:1] for images in wanted[:FEW]]
    for turn in range(turns + 1):
        times = clients.apply(ask_all, (port, wanted[:1]))[1]
        others = clients.apply(ask_all, (port, wanted[:FEW]))[1]
        since = [clients.apply(first_partial, (port,)) for _ in range(3)]
        own = [timed(lambda: next(model.stream(WORDS[0], 0)))[0].seconds for _ in range(3)]
        one = timed(lambda: sample(model, few[:1]))[0].cpu
        together = timed(lambda: sample(model, few))[0].cpu
        if turn:  # the first compiles what the library runs
            alone, beside, first, rows = alone + times, beside + others, first + since, rows + own
            batch.append(together / one)
    usual, p95 = statistics.median(alone), float(np.quantile(beside, 0.95))
    print(
        f"an image of a client alone: median {usual:.3f} s; of {FEW} clients: median"
        f" {statistics.median(beside):.3f} s, 95% within {p95:.3f} s ({p95 / usual:.2f} times);"
        f" sample takes {statistics.median(batch):.2f} times the CPU time for a batch of {FEW}"
    )
    seen, made = statistics.median(first), statistics.median(rows)
    print(
        f"first partial image of a client alone: median {seen:.3f} s, in the library"
        f" {made:.3f} s ({seen / made:.2f} times)"
    )


@contextlib.contextmanager
def server(service: Service):
    """The port of a server in a thread."""
    app = make_app(service, Address())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    server.capture_signals = contextlib.nullcontext  # only the main thread may take signals
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def timed(work):
    """The times of this process, and what came out."""
    began, cpu = time.perf_counter(), time.process_time()
    found = work()
    return Times(time.perf_counter() - began, time.process_time() - cpu), found


def sample(model: CogView, wanted: list) -> dict:
    """The images by prompt and seed, in batches of as many as there are clients."""
    keys = [key for round_of in zip(*wanted, strict=True) for key in round_of]
    sampling = model.default_sampling
    requests = [SamplingRequest(prompt, seed, 0, sampling) for prompt, seed in keys]
    batches = model.generation.sample_codes(requests, len(wanted))
    pixels = [image for codes in batches for image in model.decode(codes)]
    return dict(zip(keys, pixels, strict=True))


def ask_all(port: int, wanted: list) -> tuple[list, list[float], float]:
    """Images of all clients as they are sent, the seconds of each, and CPU seconds of it all."""
    cpu = time.process_time()
    with ThreadPoolExecutor(len(wanted)) as threads:
        found = list(threads.map(lambda images: ask(port, images), wanted))
    images = [(key, item) for of_client in found for key, item, _ in of_client]
    times = [seconds for of_client in found for _, _, seconds in of_client]
    return images, times, time.process_time() - cpu


def ask(port: int, images: list) -> list[tuple[tuple[str, int], str, float]]:
    """The images of one client, one after the other over one connection."""
    connection, found = http.client.HTTPConnection("127.0.0.1", port, timeout=600), []
    for prompt, seed in images:
        began = time.perf_counter()
        send(connection, {"prompt": prompt, "seed": seed})
        item = json.loads(connection.getresponse().read())["data"][0]
        found.append(((prompt, seed), item["b64_json"], time.perf_counter() - began))
    connection.close()
    return found


def pixels(item: str) -> np.ndarray:
    """An image as it is sent: uint8 [h, w, 3]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item))))


def first_partial(port: int) -> float:
    """Seconds until a client sees the first row of an image."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    began = time.perf_counter()
    send(connection, {"prompt": WORDS[0], "stream": True, "partial_images": 7})
    response = connection.getresponse()
    response.readline()
    seconds = time.perf_counter() - began
    response.read()
    connection.close()
    return seconds


def send(connection: http.client.HTTPConnection, fields: dict) -> None:
    """Asks for images."""
    kind = {"content-type": "application/json"}
    connection.request("POST", "/v1/images/generations", json.dumps(fields), kind)


if __name__ == "__main__":
    main()
