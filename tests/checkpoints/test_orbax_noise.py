"""Only what is said twice is dropped; the programs in test_saving.py show that it is."""

import logging
import sys
import types

from cogview_jax.checkpoints.orbax_noise import silence


def test_everything_else_is_still_shown(caplog, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    silence.__wrapped__()
    log = logging.getLogger("absl")
    with caplog.at_level("ERROR", logger="absl"):
        log.error("[process=0] _SignalingThread.run() raised an exception: %s", "pages")
        log.error("the disk is on fire")
    assert [record.message for record in caplog.records] == ["the disk is on fire"]
    closed, other = RuntimeError("Event loop is closed"), RuntimeError("something else")
    for error in (closed, other):
        sys.unraisablehook(types.SimpleNamespace(object=None, exc_value=error))
    assert [unraisable.exc_value for unraisable in shown] == [other]


def test_tasks_of_others_that_were_never_finished_are_still_shown(caplog, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    silence.__wrapped__()
    log, lost = logging.getLogger("asyncio"), "Task was destroyed but it is pending!\ntask: <Task "
    theirs = f"{lost}coro=<Store.make() running at /site-packages/orbax/checkpoint/store.py:150>>"
    other = f"{lost}coro=<serve() running at /site-packages/server/serve.py:7>>"
    with caplog.at_level("ERROR", logger="asyncio"):
        for message in (theirs, other):
            log.error(message)
    assert [record.message for record in caplog.records] == [other]
