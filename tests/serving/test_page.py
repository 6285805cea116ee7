"""The page in a browser: Chromium, where it is installed, against a server of tiny parts."""

import base64
import dataclasses
import io
import json
import re
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from pipeline.small import PROMPTS
from serving.chromium import Page, needs_browser
from serving.served import Server, pixels_of

pytest.importorskip("starlette", reason="needs the extra [serve]")
pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytest.importorskip("python_multipart", reason="needs the extra [serve]")

DONE = "!document.querySelector('.waiting, .partial') && document.querySelector('#results .card')"
STATUS = "document.querySelector('#status').textContent"


@pytest.fixture(scope="module")
def service(models):
    from cogview_jax.serving.service import Service
    from cogview_jax.serving.settings import Limits

    service = Service(models, Limits(images=6), rows=2)
    service.offer = dataclasses.replace(service.offer, prompts=tuple(PROMPTS[:2]))
    service.start()
    yield service
    service.close()


@pytest.fixture(scope="module")
def server(service):
    server = Server(service)
    yield server
    server.close()


@pytest.fixture
def page(browser, server):
    """The page of the server; at its end nothing was wrong and nobody else was asked."""
    page = Page(browser)
    visit(page, server)
    yield page
    assert page.complaints() == []
    addresses = [urlsplit(sent["request"]["url"]) for sent in page.of("Network.requestWillBeSent")]
    assert {each.netloc for each in addresses if each.scheme != "data"} == {
        f"127.0.0.1:{server.port}"
    }
    page.run("localStorage.clear()")
    page.close()


def visit(page, server):
    """Opens the page, once it knows what the server has."""
    page.open(f"http://127.0.0.1:{server.port}/")
    page.wait("document.querySelector('#model').textContent")


def generate(page, prompt=PROMPTS[0], n=3, seed=5):
    page.fill("#prompt", prompt)
    page.fill("#n", str(n))
    page.fill("#seed", str(seed))
    page.click("#go")
    page.wait(f"{STATUS}.startsWith('{n} image')")
    page.wait(DONE)


def shown(page, selector="#results .card img"):
    """The PNG files that are shown."""
    found = page.run(f"[...document.querySelectorAll({selector!r})].map((image) => image.src)")
    return [{"b64_json": address.partition("base64,")[2]} for address in found]


def facts_of(item):
    return json.loads(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).text["cogview"])


def the_same(items, images):
    assert len(items) == len(images)
    for item, image in zip(items, images, strict=True):
        np.testing.assert_array_equal(pixels_of(item), np.asarray(image))


def texts(page, selector):
    return page.run(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)")


@needs_browser
def test_rows_appear_one_after_the_other_and_the_images_are_those_of_the_library(page, models):
    page.run(
        "window.seen = []; new MutationObserver((changes) => { for (const { target } of changes)"
        " if (target.matches('.card:first-child img')) seen.push(target.src); })"
        ".observe(document.body, { attributeFilter: ['src'], subtree: true })"
    )
    generate(page)
    the_same(shown(page), models.base.generate([PROMPTS[0]], 3, seed=5)[0])
    links, sources = (
        page.run(f"[...document.querySelectorAll('.card {kind}')].map((found) => found.{what})")
        for kind, what in (("a", "href"), ("img", "src"))
    )
    assert links == sources
    seen = [{"b64_json": address.partition("base64,")[2]} for address in page.run("seen")]
    the_same(seen, list(models.base.stream(PROMPTS[0], 5)))
    assert page.run("document.querySelector('.card img').alt").startswith(PROMPTS[0])


@needs_browser
def test_what_is_kept_outlives_the_next_images_and_can_be_varied(page, models):
    generate(page)
    page.click("#results .card:nth-child(2) .under button")
    generate(page, PROMPTS[1], n=1, seed=7)
    first = models.base.generate([PROMPTS[0]], 2, seed=5)[0][1]
    the_same(shown(page, "#kept img"), [first])
    page.click("#results .open")
    page.click("#vary summary")
    page.fill("#vary [name=n]", "2")
    page.fill("#vary [name=temperature]", "0.7")
    page.click("#vary .main")
    page.wait("document.querySelectorAll('#kept .card').length === 2")
    page.wait(DONE)
    facts = [facts_of(item) for item in shown(page)]
    assert [(each["prompt"], each["temperature"]) for each in facts] == [(PROMPTS[1], 0.7)] * 2
    assert facts[0]["seed"] != 7
    page.click("#kept .card:last-child .open")
    page.click("#vary summary")
    page.run("document.querySelector('#vary [name=seed]').value = 'same'")
    page.fill("#vary [name=n]", "1")
    page.fill("#vary [name=temperature]", "0.2")
    page.click("#vary .main")
    page.wait("document.querySelectorAll('#results .card').length === 1")
    page.wait(DONE)
    (facts,) = [facts_of(item) for item in shown(page)]
    assert (facts["prompt"], facts["seed"], facts["temperature"]) == (PROMPTS[1], 7, 0.2)
    # What is no longer kept goes with the next images.
    page.click("#kept .card .under button")
    generate(page, n=1)
    assert len(shown(page, "#kept img")) == 1
    page.click("#results .open")
    page.click("#vary summary")
    page.fill("#vary [name=n]", "2")
    page.click("#vary .main")
    page.wait(f"{STATUS}.startsWith('2 images')")
    assert texts(page, "#history small")[0] == "2 images, seed 5"


@needs_browser
def test_an_image_is_completed_from_its_upper_part(page, models):
    generate(page, n=1)
    page.click("#results .open")
    page.click("#complete summary")
    page.run("document.querySelector('[name=keep_rows]').focus()")
    page.press("ArrowLeft")
    assert texts(page, "#rows-kept") == ["1 of 4"]
    page.fill("#complete [name=prompt]", PROMPTS[2])
    page.fill("#complete [name=n]", "2")
    page.click("#complete .main")
    page.wait("document.querySelector('#kept .card')")
    page.wait(DONE)
    (source,), found = shown(page, "#kept img"), shown(page)
    facts = facts_of(found[0])
    own = models.base.complete(pixels_of(source), 1, PROMPTS[2], 2, seed=facts["seed"])
    the_same(found, own)
    assert facts["kept_codes"] == 4


@needs_browser
def test_the_best_of_candidates_are_shown_once_they_are_chosen(page, models):
    page.run("document.querySelector('#settings').open = true")
    page.fill("#candidates", "3")
    generate(page, n=2)
    own = np.stack(list(map(np.asarray, models.base.generate([PROMPTS[0]], 6, seed=5)[0])))
    best = np.argsort(models.scorer.score(own, [PROMPTS[0]] * 6), kind="stable")[:2]
    for item, i in zip(shown(page), best, strict=True):
        np.testing.assert_array_equal(pixels_of(item), own[i])


@needs_browser
def test_an_image_is_captioned_scored_magnified_and_downloaded(page, browser, models):
    generate(page, n=2)
    pixels = np.asarray(models.base.generate([PROMPTS[0]], 2, seed=5)[0][1])[None]
    page.click("#results .card:nth-child(2) .open")
    page.click("#caption")
    caption = models.scorer.caption(pixels)[0]
    page.wait(f"document.querySelector('#viewer-status').textContent === {'Caption: ' + caption!r}")
    page.click("#score")
    page.wait("document.querySelector('#viewer-status').textContent.startsWith('CapLoss')")
    score = models.scorer.score(pixels, [PROMPTS[0]])[0]
    assert f"{score:.2f} (lower is better)" in texts(page, "#facts dd")
    page.click("#magnify")
    page.wait("document.querySelectorAll('#results .card').length === 3")
    larger = models.upsampler.super_resolve(pixels, [PROMPTS[0]], 5)[0]
    the_same(shown(page, "#large"), [larger])
    assert facts_of(shown(page, "#large")[0])["upscaled_from"] == 16
    page.press("ArrowLeft")
    the_same(shown(page, "#large"), [pixels[0]])
    page.press("d")
    while not (ends := [e for e in finished(browser) if e["state"] == "completed"]):
        page.run("new Promise((go) => setTimeout(go, 20))")
    assert len(ends) == 1
    (file,) = browser.downloads.iterdir()
    assert file.name == "a_red_circle_5_1.png"
    image = Image.open(file)
    np.testing.assert_array_equal(np.asarray(image), pixels[0])
    facts = json.loads(image.text["cogview"])
    assert (facts["prompt"], facts["seed"], facts["index"]) == (PROMPTS[0], 5, 1)


def finished(browser):
    events = browser.events
    return [e["params"] for e in events if e["method"] == "Browser.downloadProgress"]


@needs_browser
def test_history_goes_back_to_a_state_and_can_be_cleared(page, server):
    page.click("#settings summary")
    page.fill("#temperature", "0.9")
    generate(page, n=2)
    page.fill("#temperature", "")
    generate(page, PROMPTS[1], n=1, seed=8)
    visit(page, server)
    page.wait("document.querySelectorAll('#history button').length === 2")
    assert texts(page, "#history span") == [PROMPTS[1], PROMPTS[0]]
    page.click("#history li:last-child button")
    values = "['prompt', 'n', 'seed', 'temperature'].map((id) => document.getElementById(id).value)"
    assert page.run(values) == [PROMPTS[0], "2", "5", "0.9"]
    # It has an end, whatever is asked for.
    page.run(
        "import('/page/history.js').then(({ History }) => { const history = new History('small');"
        " for (let i = 0; i < 60; i++) {"
        " history.add({ prompt: 'x'.repeat(i < 40 ? 10 : 4000) + i }); } })"
    )
    stored = page.run("localStorage['cogview.history.small']")
    assert len(stored) < 61_000
    assert json.loads(stored)[0]["prompt"].endswith("x59")
    page.click("#clear")
    page.wait("!document.querySelector('#history button')")
    assert page.run("localStorage.length") == 0


@needs_browser
def test_where_the_browser_keeps_nothing_history_lasts_as_long_as_the_page(page, server):
    refuse = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no'); } })"
    script = page.call("Page.addScriptToEvaluateOnNewDocument", source=refuse)
    visit(page, server)
    generate(page, n=1)
    assert texts(page, "#history span") == [PROMPTS[0]]
    assert texts(page, "#history-note") == [
        "This browser keeps nothing: the list ends with the page."
    ]
    page.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    visit(page, server)


@needs_browser
def test_without_a_mouse_and_for_those_who_listen(page):
    page.wait("document.activeElement.id === 'prompt'")
    page.type("ä 星")
    page.press("Enter")
    page.wait(f"{STATUS}.startsWith('4 images')")
    # Every stop of the tabulator key is seen; one of them opens an image.
    stops = []
    while "card" not in stops:
        page.press("Tab")
        stops.append(page.run("document.activeElement.closest('.card') ? 'card' : 'other'"))
        outline = page.run("getComputedStyle(document.activeElement).outlineStyle")
        assert (outline, len(stops) < 20) == ("solid", True), page.run("document.activeElement.id")
    page.press("Enter")
    page.wait("document.querySelector('dialog').open")
    page.press("ArrowRight")
    page.press("k")
    page.wait("document.querySelector('.card.kept') === document.querySelectorAll('.card')[1]")
    page.run("document.querySelector('#complete').open = true")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    page.press("Escape")
    page.wait("!document.querySelector('dialog').open")
    assert page.run("document.activeElement.className") == "open"
    nodes += page.call("Accessibility.getFullAXTree")["nodes"]
    nodes = [node for node in nodes if not node["ignored"]]
    role = {node["nodeId"]: node["role"]["value"] for node in nodes}
    named = {*("button", "image", "link", "textbox", "spinbutton", "combobox", "slider", "form")}
    for node in nodes:
        if role[node["nodeId"]] in named:
            assert any(map(str.isalpha, node["name"]["value"])), node
    assert {"banner", "main", "complementary", "contentinfo", "dialog", "status", "alert"} <= {
        *role.values()
    }


@needs_browser
@pytest.mark.parametrize("width", [320, 390])
def test_on_a_phone_nothing_is_wider_than_the_screen(page, width):
    page.resize(width, 700, mobile=True)
    generate(page, "a long prompt " * 9 + "x" * 60, n=2)
    widest = "document.documentElement.scrollWidth"
    assert page.run(widest) <= width
    page.click("#results .open")
    page.click("#complete summary")
    assert page.run(f"[{widest}, document.querySelector('dialog').scrollWidth]") == [width, width]


def network(page, offline=False, bytes_per_second=-1):
    speed = {"latency": 0, "downloadThroughput": bytes_per_second, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", offline=offline, **speed)


@needs_browser
def test_what_is_on_its_way_can_be_stopped(page):
    network(page, bytes_per_second=4000)
    page.fill("#n", "6")
    page.fill("#prompt", PROMPTS[0])
    page.press("Enter")
    page.wait("document.querySelector('#results .partial')")
    page.press("Escape")
    page.wait(f"{STATUS} === 'Stopped.'")
    assert page.run("document.querySelectorAll('.partial, .waiting').length") == 0
    assert page.run("document.querySelectorAll('#results .card').length") < 6
    network(page)


@needs_browser
def test_a_prompt_that_is_cut_is_said(page):
    generate(page, "a red circle and a blue star " * 3, n=1)
    assert re.search(r"1 image in .* s\. Note: prompt .* it is cut there$", page.run(STATUS))
    generate(page, n=1)
    assert "Note" not in page.run(STATUS)


@needs_browser
def test_errors_are_said_in_words_and_at_their_field(page, service):
    page.fill("#prompt", " ")
    page.click("#go")
    page.wait("document.querySelector('#error').textContent.includes('no text')")
    assert page.run("document.activeElement.id") == "prompt"
    assert page.run("document.activeElement.ariaInvalid") == "true"
    bad = page.complaints()  # the browser says itself that the status was 400
    assert [entry["text"].partition("status of ")[2][:3] for entry in bad] == ["400"]
    page.browser.events.clear()
    network(page, offline=True)
    page.fill("#prompt", PROMPTS[0])
    page.click("#go")
    page.wait("document.querySelector('#error').textContent.includes('does not answer')")
    network(page)
    page.browser.events.clear()
    generate(page, n=1)
    assert texts(page, "#error") == [""]
    # What is wrong in the settings is shown where it stands.
    page.run("document.querySelector('#temperature').value = -1")
    page.click("#go")
    page.wait("document.querySelector('#settings').open")
    assert page.run("document.activeElement.id") == "temperature"


@needs_browser
def test_what_a_server_lacks_is_not_shown(page, server, service):
    whole = service.offer
    parts = ["#candidates", "#size", "#caption", "#score", "#magnify", "#complete"]
    assert page.run(f"{parts}.filter((part) => document.querySelector(part))") == parts
    assert texts(page, "#examples button") == PROMPTS[:2]
    page.click("#examples li:last-child button")
    page.wait(f"{STATUS}.startsWith('4 images')")
    assert facts_of(shown(page)[0])["prompt"] == PROMPTS[1]
    service.offer = dataclasses.replace(whole, larger=None, ranks=False, prompts=())
    try:
        visit(page, server)
        generate(page, n=1)
        page.click("#results .open")
        assert page.run(f"{parts}.filter((part) => document.querySelector(part))") == ["#complete"]
        assert page.run("document.querySelector('#examples').hidden")
    finally:
        service.offer = whole


@needs_browser
def test_where_a_key_is_needed_it_is_asked_for(browser, service):
    server = Server(service, key="a key of enough letters")
    page = Page(browser)
    try:
        page.open(f"http://127.0.0.1:{server.port}/")
        page.wait("document.activeElement.id === 'key'")
        # Nothing is wrong before something is typed.
        page.wait(f"{STATUS}.includes('asks for an API key')")
        assert (texts(page, "#error"), page.run("document.activeElement.ariaInvalid")) == (
            [""],
            None,
        )
        page.type("a key of other letters")
        page.press("Tab")
        page.wait(
            "document.querySelector('#error').textContent.includes('key is missing or wrong')"
        )
        page.fill("#key", "a key of enough letters")
        page.press("Tab")
        page.wait("document.querySelector('#model').textContent === 'small'")
        generate(page, n=1)
    finally:
        page.close()
        server.close()


def test_its_files_say_what_they_are_and_what_they_may_do(server):
    from cogview_jax.serving.page_files import PAGE

    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
    for path, name in PAGE.items():
        status, headers, content = server.send("GET", path)
        assert (status, len(content) > 100) == (200, True)
        assert headers["content-type"] == f"{kinds[name.rpartition('.')[2]]}; charset=utf-8"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["cache-control"] == "no-cache"
        status, _, content = server.send("GET", path, headers={"if-none-match": headers["etag"]})
        assert (status, content) == (304, b"")
    assert server.send("GET", "/page/../app.py")[0] == 404
