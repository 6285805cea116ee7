"""The pages for people: their files, as they lie in the folders `page` and `study_page`."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

#: What a page may do in a browser: run its own files, show images, and talk to this server.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'"
)
#: The files of the page that generates images, by the path of each.
PAGE = {
    "/": "page/page.html",
    "/page/page.css": "page/page.css",
    "/page/page.js": "page/page.js",
    "/page/card.js": "page/card.js",
    "/page/viewer.js": "page/viewer.js",
    "/page/history.js": "page/history.js",
    "/page/server.js": "page/server.js",
}
#: Those of the page on which people rate a study.
STUDY_PAGE = {
    "/": "study_page/study.html",
    "/study.css": "study_page/study.css",
    "/study.js": "study_page/study.js",
}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


@dataclass(frozen=True)
class PageFile:
    """A file of a page: its bytes, its type, and a tag that changes with its content."""

    content: bytes
    kind: str
    tag: str


@functools.cache
def page_file(name: str) -> PageFile:
    """The file of a name in `PAGE` or `STUDY_PAGE`."""
    content = resources.files("cogview_jax.serving").joinpath(*name.split("/")).read_bytes()
    kind = KINDS[name.rpartition(".")[2]]
    return PageFile(content, kind, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def page_routes(page: Mapping[str, str]) -> list[Route]:
    """The routes of `PAGE` or `STUDY_PAGE`."""
    return [Route(path, functools.partial(_answer, name)) for path, name in page.items()]


async def _answer(name: str, request: Request) -> Response:
    """A file. Browsers keep it, and ask each time whether it has changed."""
    file = page_file(name)
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
