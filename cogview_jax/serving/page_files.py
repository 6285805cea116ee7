"""The page for people: its files, as they lie in the folder `page`."""

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

#: What the page may do in a browser: run its own files, show images, and talk to this server.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'"
)
#: The files, by the path of each.
FILES = {
    "/": "page.html",
    "/page/page.css": "page.css",
    "/page/page.js": "page.js",
    "/page/card.js": "card.js",
    "/page/viewer.js": "viewer.js",
    "/page/history.js": "history.js",
    "/page/server.js": "server.js",
}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


@dataclass(frozen=True)
class PageFile:
    """A file of the page: its bytes, its type, and a tag that changes with its content."""

    content: bytes
    kind: str
    tag: str


@functools.cache
def page_file(path: str) -> PageFile:
    """The file of one of the paths in `FILES`."""
    name = FILES[path]
    content = resources.files("cogview_jax.serving").joinpath("page", name).read_bytes()
    kind = KINDS[name.rpartition(".")[2]]
    return PageFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


async def page(request: Request) -> Response:
    """A file of the page. Browsers keep it, and ask each time whether it has changed."""
    file = page_file(request.scope["path"])
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "etag": file.tag,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.kind)


ROUTES = [Route(path, page) for path in FILES]
