"""A model that is split over the devices of two processes serves the images of one."""

import json
import re
import signal

import numpy as np
import pytest
from pipeline.small import PROMPTS
from serving.served import pixels_of
from serving.test_server import asked

import processes
from cogview_jax.checkpoints.bundle_writer import write_bundle
from cogview_jax.sampling.options import SamplingConfig

pytest.importorskip("starlette", reason="needs the extra [serve]")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytest.importorskip("python_multipart", reason="needs the extra [serve]")

KIND = {"content-type": "application/json"}
READY = re.compile(r"small is ready: http://127\.0\.0\.1:(\d+)")


def test_two_processes_serve_the_images_of_one(root, tmp_path, parts, model):
    write_bundle(tmp_path / "small", **parts)
    command = ["-m", "cogview_jax.serve", "--bundle", tmp_path / "small", "--port", "0"]
    command += ["--rows", "2", "--tensor", "0"]
    with processes.Processes(root, command, 2, 1) as both:
        both.wait_until(lambda: READY.search(both.output(0)) is not None)
        port = int(READY.search(both.output(0))[1])
        for guidance, n in ((1, 3), (2.5, 1)):
            sampling = SamplingConfig(guidance=guidance)
            own = model.generate([PROMPTS[0]], n, 5, sampling=sampling)[0]
            body = {"prompt": PROMPTS[0], "seed": 5, "guidance": guidance, "n": n}
            found = asked(port, "POST", "/v1/images/generations", json.dumps(body), KIND)[2]
            for item, image in zip(found["data"], own, strict=True):
                np.testing.assert_array_equal(pixels_of(item), np.asarray(image))
        both.all[0].send_signal(signal.SIGTERM)
        both.succeed(120)
