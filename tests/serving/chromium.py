"""Chromium, driven over a pipe by its DevTools protocol: no library, no port, no network."""

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

#: Where it may lie, and the seconds that anything may take.
NAMES, PATIENCE = ("chromium", "chromium-browser", "google-chrome"), 300
FLAGS = (
    *("--headless", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"),
    *("--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--mute-audio", "--force-color-profile=srgb"),
)
CODES = {"Enter": 13, "Escape": 27, "Tab": 9, "Backspace": 8, " ": 32}
CODES |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def executable():
    """The browser's path, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


needs_browser = pytest.mark.skipif(
    executable() is None, reason="needs Chromium: no chromium in PATH"
)


class Chromium:
    """A browser with a profile of its own, which goes when it is closed."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.downloads = Path(self.folder.name) / "downloads"
        # The browser reads from 3 and writes to 4: ours lie above, so that none is overwritten.
        with contextlib.ExitStack() as stack:
            theirs, ours = [], []
            for i in range(2):
                ends = os.pipe()
                for end in ends:
                    stack.callback(os.close, end)
                theirs.append(fcntl.fcntl(ends[i], fcntl.F_DUPFD_CLOEXEC, 20))
                ours.append(fcntl.fcntl(ends[1 - i], fcntl.F_DUPFD_CLOEXEC, 20))
        self.to, self.source = ours
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        profile = f"--user-data-dir={self.folder.name}/profile"
        null = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
        places = [(os.POSIX_SPAWN_DUP2, end, 3 + i) for i, end in enumerate(theirs)]
        home = os.environ | {"HOME": self.folder.name}
        command = [executable(), *FLAGS, *sandbox, profile, "about:blank"]
        self.process = os.posix_spawn(
            command[0], command, home, file_actions=[null, *places], setpgroup=0
        )
        for end in theirs:
            os.close(end)
        self.text, self.asked, self.events = b"", 0, []
        self.call("Browser.getVersion")
        where = {"behavior": "allow", "downloadPath": str(self.downloads)}
        self.call("Browser.setDownloadBehavior", **where, eventsEnabled=True)

    def call(self, method, session=None, **params):
        """The result of a method of the protocol; events that come before it are kept."""
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.asked:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.events.append(answer)

    def read(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.text:
            ready, _, _ = select.select([self.source], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self.source, 1 << 20)
            assert part, "the browser has ended"
            self.text += part
        message, _, self.text = self.text.partition(b"\0")
        return json.loads(message)

    def close(self):
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        # It ends its own processes, unless it hangs.
        end, ended = time.monotonic() + 10, 0
        while not ended and time.monotonic() < end:
            time.sleep(0.02)
            ended, _ = os.waitpid(self.process, os.WNOHANG)
        if not ended:
            os.killpg(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self.to)
        os.close(self.source)
        self.folder.cleanup()


class Page:
    """A page in a browser."""

    def __init__(self, browser, width=1280, height=900):
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self.target, self.session = target, attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)

    def resize(self, width, height, scale=1, **options):
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics | options)

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def run(self, expression):
        """The value of an expression of JavaScript, once it is there."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in result, (expression, result["exceptionDetails"])
        return result["result"].get("value")

    def wait(self, expression):
        """Waits until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({expression})"):
            if time.monotonic() > end:
                seen = self.run("document.body.innerText")
                raise AssertionError(f"never true: {expression}", seen, self.complaints())
            time.sleep(0.02)

    def middle(self, selector):
        """Where the middle of what a selector finds first is, once it is in view."""
        at = json.dumps(selector)
        self.wait(f"document.querySelector({at})?.getClientRects().length")
        return self.run(
            f"((found) => {{ found.scrollIntoView({{ block: 'center' }});"
            f" const {{ x, y, width, height }} = found.getBoundingClientRect();"
            f" return [x + width / 2, y + height / 2]; }})(document.querySelector({at}))"
        )

    def click(self, selector):
        """A click of the mouse in the middle of what a selector finds first."""
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            where = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", **where)

    def tap(self, selector):
        """The same by a finger."""
        x, y = self.middle(selector)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def type(self, text):
        """Text, where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key, **options):
        """A key, down and up."""
        what = {"key": key, "windowsVirtualKeyCode": CODES.get(key, ord(key[0].upper()))} | options
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        kind = {"type": "keyDown", "text": text} if text else {"type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **kind, **what)
        self.call("Input.dispatchKeyEvent", type="keyUp", **what)

    def fill(self, selector, text):
        """Puts text into a field, as a person does."""
        self.run(f"(e => {{ e.focus(); e.select(); }})(document.querySelector({selector!r}))")
        if text:
            self.type(text)
        else:
            self.press("Backspace")

    def of(self, method):
        """The parameters of the page's events of a method."""
        events = self.browser.events
        mine = [event for event in events if event.get("sessionId") == self.session]
        return [event["params"] for event in mine if event["method"] == method]

    def complaints(self):
        """What the browser says is wrong: errors that were logged, and those nobody has caught."""
        logged = [entry["entry"] for entry in self.of("Log.entryAdded")]
        said = [entry for entry in self.of("Runtime.consoleAPICalled") if entry["type"] == "error"]
        bad = [entry for entry in logged if entry["level"] in ("error", "warning")]
        return bad + said + self.of("Runtime.exceptionThrown")

    def picture(self, file, whole=False):
        """A screenshot."""
        import base64

        taken = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(file).write_bytes(base64.b64decode(taken["data"]))
