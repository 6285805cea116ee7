"""Asks `cogview serve` for a thousand things of every kind, and checks every answer.

    .venv/bin/python -m bench.soak_serve [--requests 1000] [--clients 8] [--seed 0]

The server is a process of its own with the shipped bundles emoji, emoji_caption and
emoji_superres. Requests are images (with various settings, n, guidance and candidates), streams,
edits, captions, scores and larger images, in random order. A tenth of them is malformed and must be
refused with the status that is right; of another tenth the client leaves before the answer. All
other answers must be what the library gives for the same request. The server's memory after 300
requests and at the end must differ by less than 5%; at the end no row may be in use, and its counts
must agree with what was sent. Then SIGTERM must end it with status 0.

Prints what was found; exits with 1 if something was wrong.
"""

import argparse
import base64
import collections
import contextlib
import dataclasses
import http.client
import io
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.soak_requests import CAPTIONS, EDITS, IMAGES, SCORES, UPSCALES, Case, random_cases
from cogview_jax.data.transforms import center_crop
from cogview_jax.pipeline.load import load, load_scorer

#: After so many requests memory is looked at first; it may grow by this share of it from there.
SETTLED, GROWTH = 300, 0.05


def main() -> None:
    """Runs the soak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cases = list(itertools.islice(random_cases(arguments.seed), arguments.requests))
    memory, faults = [], []
    with served() as (process, port):
        began = time.monotonic()
        for some in (cases[:SETTLED], cases[SETTLED:]):
            with ThreadPoolExecutor(arguments.clients) as threads:
                list(threads.map(lambda case: ask(port, case), some))
            faults += idle(port)
            memory.append(resident(process.pid))
        seconds, counts = time.monotonic() - began, metrics(port)
        process.send_signal(signal.SIGTERM)
        if process.wait(120):
            faults.append(f"the server ended with status {process.returncode}")
    wrong = Library().wrong(cases)
    faults += wrong + disagreements(cases, counts)
    growth = memory[1] / memory[0] - 1
    if growth > GROWTH:
        faults.append(f"memory grew by {growth:.1%}")
    kinds = collections.Counter(case.kind for case in cases)
    print(f"{len(cases)} requests in {seconds:.0f} s: {dict(kinds)}")
    print(
        f"{sum(case.status != 200 for case in cases)} malformed,"
        f" {sum(case.leaves is not None for case in cases)} left early, {len(wrong)} wrong answers"
    )
    print(
        f"memory {memory[0] / 2**20:.0f} MiB after {SETTLED}, {memory[1] / 2**20:.0f} MiB at the"
        f" end ({growth:+.1%})"
    )
    for fault in faults[:20]:
        print(f"WRONG: {fault}")
    sys.exit(bool(faults))


@contextlib.contextmanager
def served():
    """A server's process and its port."""
    command = [sys.executable, "-m", "cogview_jax.serve", "--bundle", "emoji", "--port", "0"]
    command += ["--rerank_with", "emoji_caption", "--upsample_with", "emoji_superres"]
    command += ["--requests_per_minute", "1000000"]
    root = Path(__file__).parent.parent
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        ready = next(line for line in process.stderr if "is ready" in line)
        found = re.search(r":(\d+) ", ready)
        assert found is not None
        with ThreadPoolExecutor(1) as reader:
            reader.submit(lambda: [sys.stderr.write(line) for line in process.stderr or ()])
            yield process, int(found[1])
            process.wait(120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def ask(port: int, case: Case) -> None:
    """Sends a request and keeps its answer, unless the client leaves before."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body, kind = case.body
    try:
        connection.request("POST", case.path, body, {"content-type": kind})
        if case.leaves is None:
            response = connection.getresponse()
            case.answer = response.status, response.read()
        else:
            time.sleep(case.leaves)
    finally:
        connection.close()


def metrics(port: int) -> dict[str, float]:
    """The numbers of /metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def idle(port: int) -> list[str]:
    """Waits until no row is in use; what is wrong where that takes a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        counts = metrics(port)
        if not counts["cogview_rows_used"] and not counts["cogview_images_waiting"]:
            return []
        time.sleep(0.1)
    return [f"rows are lost: {counts['cogview_rows_used']:g} in use"]


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    (line,) = re.findall(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(line)


def disagreements(cases: list[Case], counts: dict[str, float]) -> list[str]:
    """Where the server's counts are not those of what was sent."""
    faults = []
    staying = [case for case in cases if case.leaves is None]
    for path in (IMAGES, EDITS, CAPTIONS, SCORES, UPSCALES):
        answered = {
            name: value
            for name, value in counts.items()
            if f'requests_total{{path="{path}"' in name
        }
        sent = sum(case.path == path for case in cases)
        left = sum(case.path == path and case.leaves is not None for case in cases)
        # A client may be gone before its request has arrived.
        if not sent - left <= sum(answered.values()) <= sent:
            faults.append(f"{path}: {sent} sent, {answered} counted")
        for status in (200, 400, 404, 415):
            got = sum(case.path == path and case.status == status for case in staying)
            value = sum(n for name, n in answered.items() if f'status="{status}"' in name)
            if not got <= value <= got + left:
                faults.append(f"{path}: {got} answers of status {status}, {value:g} counted")
    images = [case for case in cases if case.status == 200 and case.path in (IMAGES, EDITS)]
    least, most = (
        sum(map(sampled, some)) for some in ([c for c in images if c in staying], images)
    )
    if not least <= counts["cogview_images_total"] <= most:
        faults.append(f"{counts['cogview_images_total']:g} images counted, {least} to {most} right")
    return faults


def sampled(case: Case) -> int:
    """How many images a request samples."""
    return case.fields.get("n", 1) * case.fields.get("candidates", 1)


class Library:
    """The same bundles in this process."""

    def __init__(self):
        """Reads them."""
        self.base, self.upsampler = load("emoji"), load("emoji_superres")
        self.scorer = load_scorer("emoji_caption")

    def wrong(self, cases: list[Case]) -> list[str]:
        """What is wrong in the answers."""
        faults = []
        for number, case in enumerate(cases):
            if case.leaves is not None:
                continue
            assert case.answer is not None
            status, body = case.answer
            if status != case.status:
                faults.append(f"request {number} ({case.kind}): status {status}, {body[:300]!r}")
            elif status != 200:
                error = json.loads(body)["error"]
                if set(error) != {"message", "type", "param", "code"}:
                    faults.append(f"request {number} ({case.kind}): {error}")
            elif not self.right(case, body):
                faults.append(f"request {number} ({case.kind}): another answer, {case.fields}")
        return faults

    def right(self, case: Case, body: bytes) -> bool:
        """Whether an answer is the library's."""
        if case.kind == "stream":
            events = [json.loads(line[6:]) for line in body.split(b"\n") if line[:5] == b"data:"]
            frames = case.fields["partial_images"] * sampled(case)
            data = [event for event in events if event["type"].endswith("completed")]
            if len(events) != len(data) + frames:
                return False
        else:
            data = json.loads(body)["data"]
        if case.kind == "caption":
            return [item["text"] for item in data] == self.captions(case)
        if case.kind == "score":
            texts = [case.fields["prompt"]] * len(case.files or ())
            expected = self.scorer.score(uploaded(case), texts)
            return np.allclose([item["score"] for item in data], expected, rtol=1e-5)
        found = {item["index"]: received(item) for item in data}
        expected = self.images(case)
        return found.keys() == expected.keys() and all(
            np.array_equal(found[index], expected[index]) for index in found
        )

    def captions(self, case: Case) -> list[str]:
        """The texts of a request for them."""
        sampling = settled(self.scorer.captioning.default_sampling, case.fields)
        return self.scorer.caption(uploaded(case), case.fields["seed"], sampling=sampling)

    def images(self, case: Case) -> dict[int, np.ndarray]:
        """The images of a request by index."""
        fields, seed = case.fields, case.fields["seed"]
        if case.kind == "upscale":
            usual = self.upsampler.super_resolution.default_sampling
            small = np.stack([center_crop(image, fields["image_size"]) for image in uploaded(case)])
            sampling = settled(usual, fields)
            larger = self.upsampler.super_resolve(small, None, seed, sampling=sampling)
            return dict(enumerate(map(np.asarray, larger)))
        prompt, sampling = fields["prompt"], settled(self.base.default_sampling, fields)
        if case.kind == "edit":
            (pixels,) = uploaded(case)
            made = self.base.complete(
                pixels, fields["keep_rows"], prompt, 1, seed, sampling=sampling
            )
        else:
            (made,) = self.base.generate([prompt], sampled(case), seed, sampling=sampling)
        images = dict(enumerate(map(np.asarray, made)))
        if "candidates" in fields:
            scores = self.scorer.score(np.stack(list(images.values())), [prompt] * len(images))
            best = np.argsort(scores, kind="stable")[: fields["n"]]
            images = {int(index): images[index] for index in best}
        return images


def settled(usual, fields: dict[str, Any]):
    """How tokens are chosen: as the fields say, over what is usual."""
    names = ("temperature", "top_k", "top_p", "guidance")
    return dataclasses.replace(usual, **{name: fields[name] for name in names if name in fields})


def uploaded(case: Case) -> np.ndarray:
    """The images of a form: uint8 [b, 64, 64, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for _, data in case.files or ()])


def received(item: dict[str, Any]) -> np.ndarray:
    """An image of an answer."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))))


if __name__ == "__main__":
    main()
