"""A web server of files for tests, which fails as it is told to."""

import contextlib
import re
import socket
import struct
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class FileServer:
    """Serves the files of a folder, with byte ranges.

    Attributes:
        url: of the folder.
        asked: method, path with its query, range, and what was done, of each request.
        faults: what happens to the next requests, one each: a status, "short" (a body that breaks
            off), "reset" (no answer), "hang" (no answer for a second).
        always: what happens to all requests of a path, in the same words; also "whole" (ranges are
            not known), "other" (another range is sent), and a URL (where it is sent on to).
            everywhere: of all paths.
        delay: seconds before each answer.
        headers: of the last request.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.asked: list[tuple[str, str, str, object]] = []
        self.faults: deque = deque()
        self.always: dict[str, object] = {}
        self.everywhere: object = None
        self.delay, self.tags, self.answer_headers = 0.0, True, {}
        self.headers: dict[str, str] = {}
        server = self

        class Handler(_Handler):
            files = server

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ranges(self, path):
        """The ranges that were asked for of a file, but for those that ask for its status."""
        return [r for _, p, r, _ in self.asked if p == path and r != "bytes=0-0"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        """A client that hangs up is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    files: FileServer

    def log_message(self, *arguments):
        """Writes nothing."""

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        files, path = self.files, self.path.partition("?")[0]
        fault = files.everywhere or files.always.get(path)
        fault = fault or (files.faults.popleft() if files.faults else None)
        asked = self.headers.get("Range", "")
        files.asked.append((self.command, self.path, asked, fault))
        files.headers = dict(self.headers)
        time.sleep(files.delay)
        file = files.folder / unquote(path).lstrip("/")
        if fault == "reset":
            reset = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
            self.connection.close()
            self.close_connection = True
            return
        if str(fault).startswith("http://"):
            self.send_response(302)
            self.send_header("Location", fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "hang":
            time.sleep(1)
        if isinstance(fault, int) or not file.is_file():
            self.send_response(fault if isinstance(fault, int) else 404)
            for name, value in files.answer_headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status = file.stat()
        found = None if fault == "whole" else re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        begin, end = (int(found[1]), int(found[2]) + 1) if found else (0, status.st_size)
        begin += fault == "other"
        with file.open("rb") as opened:
            opened.seek(begin)
            part = opened.read(end - begin)
        if found and begin >= status.st_size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{status.st_size}")
        elif found:
            self.send_response(206)
            last = begin + len(part) - 1
            self.send_header("Content-Range", f"bytes {begin}-{last}/{status.st_size}")
        else:
            self.send_response(200)
        if files.tags:
            self.send_header("ETag", f'"{status.st_mtime_ns:x}-{status.st_size:x}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            with contextlib.suppress(OSError):
                self.wfile.write(part[: len(part) // 2] if fault == "short" else part)
        if fault == "short":
            self.close_connection = True
