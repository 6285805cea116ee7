"""The API's description in OpenAPI 3.1."""

from typing import Any

from cogview_jax.serving.image_request import WITHOUT_EFFECT, Offer


def described(offer: Offer) -> dict[str, Any]:
    """What `/openapi.json` holds of a server that has `offer`."""
    images, upload = _image_fields(offer), {"type": "string", "format": "binary"}
    uploads = {"type": "array", "items": upload}
    edit = {
        **images,
        "image": upload,
        "mask": upload | {"description": "Opaque parts of the image are kept."},
        "keep_rows": _number("integer", 0, offer.grid - 1, "Rows of codes that are kept."),
    }
    choosing = {name: images[name] for name in ("seed", "temperature", "top_k", "top_p")}
    prompt = {"prompt": images["prompt"]}
    paths = {
        "/v1/images/generations": _post("Images of a prompt.", images, ["prompt"], stream=True),
        "/v1/images/edits": _post(
            "Images of which a part is given.", edit, ["image", "prompt"], form=True, stream=True
        ),
        "/v1/images/upscales": _post(
            "Images of twice the size.",
            {"image": uploads, "image_size": {"type": "string"}, **prompt, **choosing},
            ["image"],
            form=True,
        ),
        "/v1/captions": _post("Texts.", {"image": uploads, **choosing}, ["image"], form=True),
        "/v1/scores": _post(
            "CapLoss of a text.", {"image": uploads, **prompt}, ["image", "prompt"], form=True
        ),
        "/v1/models": _get("The model."),
        "/health": _get("Whether requests are welcome."),
        "/metrics": _get("Numbers for Prometheus.", "text/plain"),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": f"CogView: {offer.name}", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _image_fields(offer: Offer) -> dict[str, Any]:
    usual, most = offer.sampling, offer.most_images
    fields: dict[str, Any] = {
        "prompt": {"type": "string"},
        "model": {"type": "string", "enum": [offer.name]},
        "n": _number("integer", 1, most, "Images.", 1),
        "size": {"type": "string", "enum": ["auto", *offer.sizes], "default": "auto"},
        "response_format": {"type": "string", "enum": ["b64_json"]},
        "stream": {"type": "boolean", "default": False},
        "partial_images": _number("integer", 0, offer.grid - 1, "Images on the way.", 0),
        "user": {"type": "string"},
        "seed": _number("integer", 0, 2**32 - 1, "Any where it is left out; the answer has it."),
        "temperature": _number("number", 0, None, "0 is greedy.", usual.temperature),
        "top_k": _number("integer", 0, None, "0 is all.", usual.top_k),
        "top_p": _number("number", 0, 1, "1 is all.", usual.top_p),
        "guidance": _number("number", 0, None, "1 is none.", usual.guidance),
    }
    if offer.ranks:
        what = "Images sampled for each that is sent: the best."
        fields["candidates"] = _number("integer", 1, most, what, 1)
    return fields | {
        name: {"description": "Without effect."} | ({"enum": list(allowed)} if allowed else {})
        for name, allowed in WITHOUT_EFFECT.items()
    }


def _number(
    kind: str, least: float, most: float | None, what: str, default: float | None = None
) -> dict[str, Any]:
    number = {"type": kind, "minimum": least, "description": what}
    if most is not None:
        number["maximum"] = most
    return number if default is None else number | {"default": default}


def _post(
    what: str, fields: dict[str, Any], needed: list[str], form: bool = False, stream: bool = False
) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": fields,
        "required": needed,
        "additionalProperties": False,
    }
    kind = "multipart/form-data" if form else "application/json"
    kinds = ["application/json", *(["text/event-stream"] if stream else [])]
    return {
        "post": {
            "summary": what,
            "requestBody": {"required": True, "content": {kind: {"schema": schema}}},
            "responses": {
                "200": {"description": what, "content": {each: {} for each in kinds}},
                "default": {"description": "An error.", "content": {"application/json": {}}},
            },
        }
    }


def _get(what: str, kind: str = "application/json") -> dict[str, Any]:
    return {
        "get": {"summary": what, "responses": {"200": {"description": what, "content": {kind: {}}}}}
    }
