"""What /openapi.json says is what the server does."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline.small import PROMPTS
from serving.served import Server

pytest.importorskip("starlette", reason="needs the extra [serve]")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytest.importorskip("python_multipart", reason="needs the extra [serve]")

PATH = "/v1/images/generations"
#: Beside Python or on the path; the project does not depend on it.
SCHEMATHESIS = shutil.which("schemathesis", path=Path(sys.executable).parent) or shutil.which(
    "schemathesis"
)


@pytest.fixture(scope="module")
def server(model):
    from cogview_jax.serving.service import Models, Service
    from cogview_jax.serving.settings import Limits

    service = Service(Models("small", model), Limits(requests_per_minute=1_000_000), rows=4)
    service.start()
    server = Server(service)
    yield server
    server.close()
    service.close()


@pytest.fixture(scope="module")
def described(server):
    return json.loads(server.send("GET", "/openapi.json")[2])


def test_every_path_that_is_described_is_there_and_no_other(server, described):
    assert "/v1/captions" not in described["paths"]  # without a model for it
    for path, operations in described["paths"].items():
        for method in operations:
            status = server.send(method.upper(), path.replace("{name}", "small"))[0]
            assert status == (200 if method == "get" else 415), path


def test_every_field_is_taken_within_its_bounds_and_refused_beyond(server, described):
    schema = described["paths"][PATH]["post"]["requestBody"]["content"]["application/json"]
    properties = schema["schema"]["properties"]
    pattern = re.compile(properties.pop("prompt")["pattern"])
    for prompt in (*PROMPTS, "", " \n", "a\0b"):
        assert (server.post(PATH, {"prompt": prompt})[0] == 200) == bool(pattern.search(prompt))
    for name, field in properties.items():
        right, wrong = [None], []
        if "enum" in field:
            right, wrong = field["enum"], ["no such choice"]
        elif "minimum" in field:
            least = field.get("exclusiveMinimum", field["minimum"])
            right = [None, field["maximum"], *([least] if "exclusiveMinimum" not in field else [])]
            wrong = [field["minimum"] - 1, [], *([least] if "exclusiveMinimum" in field else [])]
        stream = {"stream": True} if name == "partial_images" else {}
        for value in right:
            body = {"prompt": PROMPTS[0], **stream, name: value}
            status, _, answer = server.send("POST", PATH, body)
            assert status == 200, (name, value, answer)
        for value in wrong:
            status, answer = server.post(PATH, {"prompt": PROMPTS[0], name: value})
            assert status in (400, 404), (name, value)
            assert answer["error"]["param"] == name


@pytest.mark.skipif(SCHEMATHESIS is None, reason="needs schemathesis (pip install schemathesis)")
def test_generated_requests_find_no_fault(server, tmp_path):
    # Not checked: that valid requests are accepted (bytes of a file need not be an image), and
    # that invalid ones are refused (a form has no types).
    checks = (
        "not_a_server_error,status_code_conformance,content_type_conformance,"
        "response_schema_conformance,unsupported_method,allow_header_conformance"
    )
    url = f"http://127.0.0.1:{server.port}/openapi.json"
    command = [SCHEMATHESIS, "run", url, "--checks", checks, "--max-examples", "10", "--seed", "1"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:]
