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
