"""A server in this process, and plain requests to it."""

import base64
import contextlib
import http.client
import io
import json
import threading
import time
import uuid

import numpy as np
from PIL import Image


class Server:
    """The application of a service on a free port, answered by uvicorn in a thread."""

    def __init__(self, service, **address):
        import uvicorn

        from cogview_jax.serving.app import make_app
        from cogview_jax.serving.settings import Address

        app = make_app(service, Address(**address))
        config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none")
        self.service, self.server = service, uvicorn.Server(config)
        # Only the main thread may take signals.
        self.server.capture_signals = contextlib.nullcontext
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]

    def close(self):
        self.server.should_exit = True
        self.thread.join(60)

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def send(self, method, path, body=None, headers=()):
        """Status, headers and body of the response; a body that is no bytes is sent as JSON."""
        headers = dict(headers)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("content-type", "application/json")
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def post(self, path, body=None, **headers):
        """Status and JSON of the answer."""
        status, _, text = self.send("POST", path, body, headers)
        return status, json.loads(text)

    def form(self, path, files, **fields):
        """The same, of a multipart form; files are pairs of a field and bytes."""
        boundary, parts = uuid.uuid4().hex, []
        for name, value in fields.items():
            head = f'content-disposition: form-data; name="{name}"\r\n\r\n'
            parts.append(head.encode() + str(value).encode())
        for name, data in files:
            head = f'content-disposition: form-data; name="{name}"; filename="../../etc/a"\r\n'
            parts.append(head.encode() + b"content-type: image/png\r\n\r\n" + data)
        mark = f"--{boundary}".encode()
        body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"
        kind = {"content-type": f"multipart/form-data; boundary={boundary}"}
        status, _, text = self.send("POST", path, body, kind)
        return status, json.loads(text)

    def events(self, body, path="/v1/images/generations"):
        """The events of a stream, each a name and its JSON."""
        status, headers, text = self.send("POST", path, body)
        assert status == 200, text
        assert headers["content-type"].startswith("text/event-stream")
        assert text.endswith(b"\n\n")
        found = []
        for block in text.decode().split("\n\n")[:-1]:
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return found


def pixels_of(item):
    """The image of an item of the API, uint8 [h, w, 3]."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))))


def png_of(pixels):
    """A PNG file of pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
