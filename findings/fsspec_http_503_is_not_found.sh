#!/usr/bin/env bash
# fsspec 2026.9.0 with aiohttp 3.14.5, Python 3.11.
#
# Guess, before it was run: of a file on a web server, `info` raises what the server answered, and
# `cat_file(url, 10, 20)` gives ten bytes or an error. Seen: whatever goes wrong, a 503, a 401 or a
# connection that is reset, `info` raises FileNotFoundError (the answer is its __cause__), and
# `exists` and `isfile` are False: a file that a busy server has is said to be missing, so that a
# loop that tries again what may pass gives up at once, and one that skips missing files skips whole
# ones. A server that knows no byte ranges, such as `python -m http.server`, answers 200 with the
# whole file, and that is what `cat_file` and `cat_ranges` return for ten bytes of it. What helps:
# look at the status in the causes of an error before its type, and at the length of every range.
#
# Output: "200: info 1000 bytes, exists True", "503: info FileNotFoundError from 503, exists False",
# "401: info FileNotFoundError from 401, exists False", "cat_file of 10 bytes: 1000".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet fsspec==2026.9.0 aiohttp==3.14.5
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        status = int(self.path[1:])
        data = bytes(1000) if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
files = fsspec.filesystem("http")
found = []
for status in (200, 503, 401):
    url = f"http://127.0.0.1:{server.server_port}/{status}"
    try:
        info = f"{files.info(url)['size']} bytes"
    except Exception as error:
        info = f"{type(error).__name__} from {error.__cause__.status}"
    found.append(f"{status}: info {info}, exists {files.exists(url)}")
url = f"http://127.0.0.1:{server.server_port}/200"
found.append(f"cat_file of 10 bytes: {len(files.cat_file(url, 10, 20))}")
print(*found, sep="\n")
wanted = [
    "200: info 1000 bytes, exists True",
    "503: info FileNotFoundError from 503, exists False",
    "401: info FileNotFoundError from 401, exists False",
    "cat_file of 10 bytes: 1000",
]
sys.exit(found != wanted)
PYTHON
