"""The rating page in a browser: by keys alone, and by touch on a telephone."""

import contextlib
import os
import shutil
import threading
import time

import pytest

from cogview_jax.evaluation.study_ratings import read_ratings
from small_study import small_study

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra [serve]")
KEY = "k" * 20


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        path = shutil.which("chromium") or started.chromium.executable_path
        if not os.path.exists(path):
            pytest.skip("needs Chromium")
        yield started.chromium.launch(executable_path=path, args=["--no-sandbox"])


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
def opened(browser, address, **context):
    """A page whose errors end the test."""
    with browser.new_context(**context) as within:
        page, errors = within.new_page(), []
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.goto(address)
        yield page
        assert not errors


def at(page, place):
    page.wait_for_selector(f"#place:text-matches('^{place} of 2')")


def checked(page):
    return page.locator("input:checked").evaluate_all("all => all.map(each => Number(each.value))")


def test_by_keys(browser, served, study):
    with opened(browser, f"{served}/#key={KEY}") as page:
        page.wait_for_selector("#name:focus")
        page.keyboard.type("Ann")
        page.keyboard.press("Enter")
        at(page, 1)
        page.keyboard.press("Enter")
        page.wait_for_selector("#status:text('13 answers are missing')")
        given = [1, 2, 3, 4, 5, 4, 3, 2, 1, 1, 1, 10, 2]
        for score in given:
            page.keyboard.press("0" if score == 10 else str(score))
        page.keyboard.press("Enter")
        at(page, 2)
        # One back: what was said is there, and is changed by arrows.
        page.keyboard.press("Backspace")
        at(page, 1)
        assert checked(page) == given
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        at(page, 2)
        # What is not saved yet outlives a reload.
        page.keyboard.press("4")
        page.keyboard.press("9")
        page.wait_for_selector("#status:text('expected 1 to 5')")
        page.reload()
        at(page, 2)
        assert checked(page) == [4]
    caption = study.caption_order("ann")[0]
    kept = read_ratings(study, "ann")
    systems = study.system_order("ann", caption)
    assert set(kept) == {caption}
    assert [list(kept[caption].scores[name].values()) for name in systems] == [
        *([2, 2, 3, 4], [5, 4, 3, 2], [1, 1, 1, 10])
    ]
    assert kept[caption].best == systems[1]


def test_by_touch(browser, served, study):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    with opened(browser, f"{served}/#rater=bob&key={KEY}", **phone) as page:
        for place in (1, 2):
            at(page, place)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
            names = page.get_by_role("radiogroup").count()
            assert (names, page.get_by_role("group", name="Image 2").count()) == (13, 1)
            for label in page.locator(".question").all():
                label.locator("label").nth(2).tap()
            page.get_by_role("button", name="Save and next").tap()
        page.wait_for_selector("#end:not([hidden])")
        assert page.inner_text("#place") == "2 of 2 rated"
    kept = read_ratings(study, "bob")
    assert len(kept) == 2
    for caption, rating in kept.items():
        assert rating.best == study.system_order("bob", caption)[2]


def test_without_the_key_it_says_what_is_missing(browser, served):
    with browser.new_context() as within:
        page = within.new_page()
        page.goto(f"{served}/#rater=eve")
        page.wait_for_selector("#status.error:text('Open the link that you were given')")
