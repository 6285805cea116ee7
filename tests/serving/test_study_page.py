"""The rating page in a browser: by keys alone, and by touch on a telephone."""

import contextlib
import threading
import time

import pytest
from serving.chromium import Page, needs_browser

from cogview_jax.evaluation.study_ratings import read_ratings
from small_study import small_study

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra [serve]")
pytestmark = needs_browser
KEY = "k" * 20
CHECKED = "[...document.querySelectorAll('input:checked')].map((each) => Number(each.value))"


@pytest.fixture
def study(tmp_path):
    return small_study(tmp_path / "study", 2)


@pytest.fixture
def served(study):
    """The address of a server of the study."""
    from cogview_jax.serving.settings import Address, Limits
    from cogview_jax.serving.study_app import study_app

    app = study_app(study, Address(key=KEY), Limits())
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


@contextlib.contextmanager
def opened(browser, address, **size):
    """A page, at whose end nothing was wrong."""
    page = Page(browser, **size)
    page.open(address)
    yield page
    assert page.complaints() == []
    page.run("localStorage.clear()")
    page.close()


def at(page, place):
    page.wait(f"document.querySelector('#place').textContent.startsWith('{place} of 2')")


def says(page, text):
    page.wait(f"document.querySelector('#status').textContent.includes({text!r})")


def test_by_keys(browser, served, study):
    with opened(browser, f"{served}/#key={KEY}") as page:
        page.wait("document.activeElement.id === 'name'")
        page.type("Ann")
        page.press("Enter")
        at(page, 1)
        page.press("Enter")
        says(page, "13 answers are missing")
        given = [1, 2, 3, 4, 5, 4, 3, 2, 1, 1, 1, 10, 2]
        for score in given:
            page.press("0" if score == 10 else str(score))
        page.press("Enter")
        at(page, 2)
        # One back: what was said is there, and is changed by arrows.
        page.press("Backspace")
        at(page, 1)
        page.wait(f"String({CHECKED}) === {','.join(map(str, given))!r}")
        page.press("ArrowDown")
        page.press("ArrowRight")
        page.press("Enter")
        at(page, 2)
        # What is not saved yet outlives a reload.
        page.press("4")
        page.press("9")
        says(page, "expected 1 to 5")
        page.call("Page.reload")
        page.wait(f"String({CHECKED}) === '4'")
        at(page, 2)
    caption = study.caption_order("ann")[0]
    kept = read_ratings(study, "ann")
    systems = study.system_order("ann", caption)
    assert set(kept) == {caption}
    assert [list(kept[caption].scores[name].values()) for name in systems] == [
        *([2, 2, 3, 4], [5, 4, 3, 2], [1, 1, 1, 10])
    ]
    assert kept[caption].best == systems[1]


def network(page, latency):
    speed = {"downloadThroughput": -1, "uploadThroughput": -1}
    page.call("Network.emulateNetworkConditions", offline=False, latency=latency, **speed)


def test_keys_before_the_images_are_there_count_for_none(browser, served, study):
    with opened(browser, f"{served}/#key={KEY}") as page:
        page.wait("document.activeElement.id === 'name'")
        network(page, 400)
        page.type("Cat")
        page.press("Enter")
        page.wait("document.querySelector('#save').disabled")
        at(page, 1)
        assert page.run(CHECKED) == []
        for score in [*[1] * 12, 2]:
            page.press(str(score))
        page.press("Enter")
        page.wait("document.querySelector('#save').disabled")
        # Images of the caption before are shown, or none.
        page.press("5")
        page.press("4")
        says(page, "Wait for the images")
        at(page, 2)
        says(page, "keys count from now on")
        assert page.run(CHECKED) == []
        page.press("3")
        page.wait(f"String({CHECKED}) === '3'")
        network(page, 0)
    caption = study.caption_order("cat")[0]
    (rating,) = read_ratings(study, "cat").values()
    assert {score for scores in rating.scores.values() for score in scores.values()} == {1}
    assert rating.best == study.system_order("cat", caption)[1]


def test_by_touch(browser, served, study):
    with opened(browser, f"{served}/#rater=bob&key={KEY}", width=360, height=740) as page:
        page.resize(360, 740, mobile=True)
        page.call("Emulation.setTouchEmulationEnabled", enabled=True)
        for place in (1, 2):
            at(page, place)
            assert page.run("document.documentElement.scrollWidth") <= 360
            tree = page.call("Accessibility.getFullAXTree")["nodes"]
            roles = [node.get("role", {}).get("value") for node in tree]
            names = [node.get("name", {}).get("value") for node in tree]
            assert (roles.count("radiogroup"), "Image 2" in names) == (13, True)
            groups = page.run("document.querySelectorAll('.question').length")
            for group in range(groups):
                third = (
                    f"document.querySelectorAll('.question')[{group}].querySelectorAll('label')[2]"
                )
                page.run(f"{third}.id = 'now'")
                page.tap("#now")
                page.run(f"{third}.removeAttribute('id')")
                page.wait(f"{CHECKED}.length === {group + 1}")
            page.tap("#save")
        page.wait("!document.querySelector('#end').hidden")
        page.wait("document.querySelector('#place').textContent === '2 of 2 rated'")
    kept = read_ratings(study, "bob")
    assert len(kept) == 2
    for caption, rating in kept.items():
        assert rating.best == study.system_order("bob", caption)[2]


def test_without_the_key_it_says_what_is_missing(browser, served):
    page = Page(browser)
    page.open(f"{served}/#rater=eve")
    says(page, "Open the link that you were given")
    page.close()
