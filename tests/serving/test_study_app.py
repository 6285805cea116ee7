"""What the server of a study sends, keeps and refuses; and the command that starts it."""

import asyncio
import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys

import pytest

from cogview_jax.evaluation import study_ratings
from cogview_jax.evaluation.human_study import QUESTIONS
from cogview_jax.evaluation.study_ratings import read_ratings
from command_runs import call
from small_study import SYSTEMS, rate, small_study

pytest.importorskip("starlette", reason="needs the extra [serve]")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytest.importorskip("python_multipart", reason="needs the extra [serve]")
from cogview_jax.serving.settings import Address, Limits
from cogview_jax.serving.study_app import study_app

KEY = "k" * 20


@pytest.fixture
def study(tmp_path):
    return small_study(tmp_path / "the_study", 5)


class Client:
    """Asks an application without a network."""

    def __init__(self, study, **address):
        self.app = study_app(study, Address(**address), Limits())

    def ask(self, method, path, body=None, **headers):
        """Status, headers and body of the response."""
        data = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        headers = {"host": "localhost", "content-type": "application/json"} | headers
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
        }
        sent = []

        async def receive():
            return {"type": "http.request", "body": data}

        async def send(message):
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        start, *rest = sent
        found = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], found, b"".join(each["body"] for each in rest)

    def get(self, path):
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path, body):
        status, _, text = self.ask("POST", path, body)
        return status, json.loads(text)


def answers(value=3, best=1):
    scores = [dict.fromkeys((question.name for question in QUESTIONS), value + i) for i in range(3)]
    return {"scores": scores, "best": best}


def test_a_rater_rates_and_goes_on(study):
    client = Client(study)
    about = client.get("/study/Ann")
    assert about == {
        "rater": "ann",
        "captions": 5,
        "rated": [],
        "images": 3,
        "questions": [question._asdict() for question in QUESTIONS],
    }
    order = study.caption_order("ann")
    for place in (0, 3):
        caption = client.get(f"/study/ann/{place}")
        assert caption == {"caption": f"caption {order[place]}", "rating": None}
        assert client.post(f"/study/ann/{place}", answers(1, best=3))[0] == 200
    assert client.post("/study/ann/3", answers(2, best=2)) == (200, {"rated": 2})
    # What was sent by number is kept by name.
    systems = study.system_order("ann", order[3])
    kept = read_ratings(study, "ann")[order[3]]
    assert kept.best == systems[1]
    assert [kept.scores[name]["clarity"] for name in systems] == [2, 3, 4]
    # Another server, as after a crash, goes on.
    other = Client(study)
    assert other.get("/study/ann")["rated"] == [0, 3]
    assert other.get("/study/ann/3")["rating"] == answers(2, best=2)
    assert other.get("/study/bob")["rated"] == []


def test_images_are_those_of_the_raters_order(study):
    client = Client(study)
    for rater, place in (("ann", 1), ("bob", 1)):
        caption = study.caption_order(rater)[place]
        for number, system in enumerate(study.system_order(rater, caption), 1):
            status, headers, data = client.ask("GET", f"/study/{rater}/{place}/{number}.png")
            assert (status, headers["content-type"]) == (200, "image/png")
            assert data == study.png(caption, system)


def test_nothing_that_is_sent_tells_whose_an_image_is(study):
    """Every byte of every response, errors too."""
    rate(study, "ann", 2)
    client, sent = Client(study), []
    for path in ("/", "/study.css", "/study.js", "/health", "/study/ann", "/study", "/okapi"):
        sent.append(client.ask("GET", path))
    for place in range(6):
        sent.append(client.ask("GET", f"/study/ann/{place}"))
        sent += [client.ask("GET", f"/study/ann/{place}/{image}.png") for image in range(5)]
    good = answers()
    for body in (good, {}, good | {"best": 4}, good | {"scores": []}, good | {"scores": [{}] * 3}):
        sent.append(client.ask("POST", "/study/ann/0", body))
    (study.folder / "images" / "okapi" / "0001.png").unlink()
    (study.folder / "ratings" / "eve.jsonl").write_text('{"caption": 1, "scores": 0, "best": 0}\n')
    sent.append(client.ask("GET", "/study/eve"))
    place = study.caption_order("ann").index(1)
    sent += [client.ask("GET", f"/study/ann/{place}/{image}.png") for image in (1, 2, 3)]
    statuses = [status for status, _, _ in sent]
    assert {200, 400, 404, 500} == set(statuses)
    for _, headers, body in sent:
        whole = json.dumps(headers).encode() + body
        assert not re.search("|".join([*SYSTEMS, "source", "the_study"]).encode(), whole), whole


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is no JSON"),
        ({"best": 1}, "scores: expected a list of 3 objects, each with clarity (1 to 5), "),
        (answers() | {"best": 0}, "best 0: expected a whole number from 1 to 3"),
        (answers() | {"best": "okapi"}, "best 'okapi': expected a whole number from 1 to 3"),
        (answers() | {"scores": answers()["scores"][:2]}, "scores: expected a list of 3"),
        (answers() | {"scores": [1, 2, 3]}, "scores: expected a list of 3"),
        (answers(4), "scores: expected a list of 3"),
        (answers() | {"bset": 1}, "unknown field 'bset'"),
    ],
)
def test_answers_that_are_not_whole_are_refused(study, body, message):
    status, found = Client(study).post("/study/ann/0", body)
    assert status == 400
    assert found["error"]["message"].startswith(message)
    assert not (study.folder / "ratings").exists()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/study/../0", 400),
        ("/study/..%2F..%2Fx/0", 400),
        ("/study/../../etc/0", 404),
        ("/study/a.b/0", 400),
        ("/study/\0/0", 400),
        ("/study/ann/5", 404),
        ("/study/ann/-1", 404),
        ("/study/ann/" + "9" * 5000, 414),
        ("/study/ann/0/../../study.json", 404),
        ("/images/okapi/0000.png", 404),
        ("/study.json", 404),
    ],
)
def test_no_path_of_a_request_is_opened(study, path, status):
    before = sorted(study.folder.parent.rglob("*"))
    client = Client(study)
    assert client.ask("POST", path, answers())[0] in (status, 404, 405)
    assert client.ask("GET", path)[0] == status
    assert sorted(study.folder.parent.rglob("*")) == before


def test_the_page_runs_its_own_script_alone(study):
    client = Client(study)
    _, headers, page = client.ask("GET", "/")
    policy = headers["content-security-policy"]
    rules = [rule.strip() for rule in policy.split(";")]
    for rule in ("default-src 'none'", "script-src 'self'", "style-src 'self'"):
        assert rule in rules
    assert "unsafe" not in policy
    script = client.ask("GET", "/study.js")
    assert script[1]["content-type"] == "text/javascript; charset=utf-8"
    assert not re.search(rb"https?://|style=|onclick|innerHTML", page + script[2])


def test_other_machines_need_a_key_and_other_sites_are_refused(study):
    client = Client(study, host="0.0.0.0", key=KEY)
    assert [client.ask("GET", path)[0] for path in ("/", "/study.js", "/study.css")] == [200] * 3
    for path in ("/study/ann", "/study/ann/0", "/study/ann/0/1.png"):
        assert client.ask("GET", path)[0] == 401
        assert client.ask("GET", path, authorization=f"Bearer {KEY}")[0] == 200
    assert client.ask("POST", "/study/ann/0", answers())[0] == 401
    local = Client(study)
    assert local.ask("GET", "/study/ann", host="evil.example")[0] == 403
    assert local.ask("POST", "/study/ann/0", answers(), origin="http://evil.example")[0] == 403
    assert not (study.folder / "ratings").exists()


def test_a_rating_that_cannot_be_kept_is_an_error(study, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(study_ratings.os, "write", full)
    status, found = Client(study).post("/study/ann/0", answers())
    assert status == 503
    assert "could not be kept: No space left on device" in found["error"]["message"]


def test_ratings_that_cannot_be_read_are_an_error(study):
    (study.folder / "ratings").touch()
    status, _, body = Client(study).ask("GET", "/study/ann")
    assert (status, b"a file of the study is damaged" in body) == (500, True)


def test_a_killed_server_has_lost_nothing(root, study, tmp_path):
    with _started(root, study) as (_, port):
        assert _request(port, "POST", "/study/ann/2", answers())[0] == 200
        assert _request(port, "POST", "/study/ann/4", answers())[0] == 200
    with _started(root, study) as (process, port):
        assert _request(port, "GET", "/study/ann")[1]["rated"] == [2, 4]
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0
        assert "ann has rated 2 of 5 captions" in process.said


@contextlib.contextmanager
def _started(root, study):
    """A server and its port; in the end it is killed."""
    command = [sys.executable, "-m", "cogview_jax.serve", "--port=0", f"--study={study.folder}"]
    process = subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True)
    process.said = ""
    try:
        for line in process.stderr:
            process.said += line
            if found := re.search(r"is ready: http://127\.0\.0\.1:(\d+)", line):
                break
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _request(port, method, path, body=None):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as client:
        client.request(method, path, json.dumps(body), {"content-type": "application/json"})
        response = client.getresponse()
        return response.status, json.loads(response.read())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--bundle or --study is missing: give a bundle to serve, such as --bundle emoji, or"),
        (("--study=S", "--bundle=emoji"), "--study needs no bundle: leave --bundle out"),
        (("--study=S", "--rows=4"), "--study needs no bundle: leave --rows out"),
        (("--study=S", "--parallel_window=4"), "--study needs no bundle: leave --parallel_window"),
        (("--study=S", "--port=0"), "--study S: expected the folder of a study, which evaluate"),
        (("--study=S", "--host=0.0.0.0"), "--host 0.0.0.0 lets other machines in: set COGVIEW_API"),
    ],
)
def test_flags_that_do_not_fit_are_refused(root, flags, message):
    refused = call(root, "serve", *flags)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {message}")
    assert refused.stderr.count("\n") == 1
