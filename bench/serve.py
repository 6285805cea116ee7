"""Images a second of `cogview serve` with several clients, as a share of those of `cogview sample`.

    .venv/bin/python bench/serve.py                      # 16 clients, the bundle emoji
    .venv/bin/python bench/serve.py --clients 4 --each 8

The server runs in this process and is asked over HTTP, each client by a thread that asks for one
image after the other. `sample` makes the same images in batches of as many as there are clients.
Both are measured in turns, so that other work on the machine slows both alike; the median of the
shares is what counts. CPU time, in which the work of the clients counts as the server's, tells the
same on a machine that others use. It also checks that both make the same images.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

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


def main() -> None:
    """Prints the shares and the time to a first partial image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="emoji")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--each", type=int, default=4, help="images of each client in a turn")
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    model = load(arguments.bundle)
    service = Service(Models(arguments.bundle, model), Limits(requests_per_minute=1_000_000))
    service.start()
    clients, each = arguments.clients, arguments.each
    wanted = [
        [(f"{WORDS[(i + k) % len(WORDS)]} {i}", 100 * i + k) for k in range(each)]
        for i in range(clients)
    ]
    with server(service) as port, ThreadPoolExecutor(clients) as threads:
        shares = []
        for turn in range(arguments.turns + 1):
            (sampled, cpu), own = timed(lambda: sample(model, wanted))
            (served, cpu_served), found = timed(
                lambda: list(threads.map(lambda images: ask(port, images), wanted))
            )
            assert all(np.array_equal(own[key], image) for got in found for key, image in got)
            if turn:  # the first compiles what sample runs
                shares.append((sampled / served, cpu / cpu_served))
                count = clients * each
                print(
                    f"sample {count / sampled:6.2f} images/s, serve {count / served:6.2f}"
                    f" images/s, share {sampled / served:.2f}, by CPU time {cpu / cpu_served:.2f}",
                    flush=True,
                )
        share, by_cpu = (statistics.median(column) for column in zip(*shares, strict=True))
        print(f"median share {share:.2f}, by CPU time {by_cpu:.2f}, of {len(shares)} turns")
        first = [first_partial(port) for _ in range(5)]
        print(f"first partial image of a client alone: {statistics.median(first):.3f} s")
    service.close()


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
    """Seconds and CPU seconds, and what came out."""
    began, cpu = time.perf_counter(), time.process_time()
    found = work()
    return (time.perf_counter() - began, time.process_time() - cpu), found


def sample(model: CogView, wanted: list) -> dict:
    """The images by prompt and seed, in batches of as many as there are clients."""
    keys = [key for round_of in zip(*wanted, strict=True) for key in round_of]
    sampling = model.default_sampling
    requests = [SamplingRequest(prompt, seed, 0, sampling) for prompt, seed in keys]
    batches = model.generation.sample_codes(requests, len(wanted))
    pixels = [image for codes in batches for image in model.decode(codes)]
    return dict(zip(keys, pixels, strict=True))


def ask(port: int, images: list) -> list:
    """The images of one client, one after the other over one connection."""
    connection, found = http.client.HTTPConnection("127.0.0.1", port, timeout=600), []
    for prompt, seed in images:
        send(connection, {"prompt": prompt, "seed": seed})
        item = json.loads(connection.getresponse().read())["data"][0]
        file = io.BytesIO(base64.b64decode(item["b64_json"]))
        found.append(((prompt, seed), np.asarray(Image.open(file))))
    connection.close()
    return found


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
