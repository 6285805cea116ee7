"""The API's description in OpenAPI 3.1."""

import sys
from typing import Any

from cogview_jax.sampling.options import MOST_GUIDANCE
from cogview_jax.serving.fields import MOST_FILES
from cogview_jax.serving.image_request import WITHOUT_EFFECT, Offer
from cogview_jax.tokenizers.prompt import MOST_CHARACTERS

Schema = dict[str, Any]

_UPLOAD = {"type": "string", "format": "binary", "description": "A file that holds an image."}
_UPLOADS = {"type": "array", "items": _UPLOAD, "minItems": 1, "maxItems": MOST_FILES}
_TEXT = {"type": "string"}
_WITHOUT_EFFECT = {"description": "Without effect."}


def described(offer: Offer) -> Schema:
    """What `/openapi.json` holds of a server that has `offer`."""
    images = _image_fields(offer)
    edit = {
        **images,
        "image": _UPLOAD,
        "mask": _UPLOAD | {"description": "Opaque parts of the image are kept."},
        "keep_rows": _number("integer", 0, offer.grid - 1, "Rows of codes that are kept."),
    }
    some = ("model", "user", "seed", "temperature", "top_k", "top_p")
    choosing = {name: images[name] for name in some}
    common = {name: images[name] for name in ("model", "user")}
    prompt = {"prompt": images["prompt"]}
    paths = {
        "/v1/images/generations": _post("Images of a prompt.", images, ["prompt"], "Images"),
        "/v1/images/edits": _post(
            "Images of which a part is given.", edit, ["image", "prompt"], "Images", form=True
        ),
        "/v1/models": _get("The models: one.", _object(object=_TEXT, data=_list(_ref("Model")))),
        "/v1/models/{name}": _get("The model of a name.", _ref("Model"), offer.name),
        "/health": _get("Whether requests are welcome.", _object(status=_TEXT)),
        "/metrics": _get("Numbers for Prometheus.", None),
    }
    health = paths["/health"]["get"]["responses"]
    health["503"] = health["200"]
    if offer.ranks:
        fields = {"image": _UPLOADS, **choosing}
        paths["/v1/captions"] = _post("Texts.", fields, ["image"], "Texts", form=True)
        fields, needed = {"image": _UPLOADS, **prompt, **common}, ["image", "prompt"]
        paths["/v1/scores"] = _post("CapLoss of a text.", fields, needed, "Scores", form=True)
    if offer.upscales:
        size = {"type": "string", "enum": list(map(str, sorted(offer.upscales)))}
        needed = ["image", "prompt"] if offer.upscales_by_text else ["image"]
        text = prompt if offer.upscales_by_text else {"prompt": _WITHOUT_EFFECT}
        fields = {"image": _UPLOADS, "image_size": size, **text, **choosing}
        paths["/v1/images/upscales"] = _post(
            "Images of twice the size.", fields, needed, "Images", form=True
        )
    return {
        "openapi": "3.1.0",
        "info": {"title": f"CogView: {offer.name}", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": _answers(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _image_fields(offer: Offer) -> Schema:
    usual, most = offer.sampling, offer.most_images
    prompt = {
        "type": "string",
        "maxLength": MOST_CHARACTERS,
        "pattern": r"^[^\x00]*[^\x00\s][^\x00]*$",
        "description": "What the image shows; longer texts than the model reads are cut, and"
        " the answer has a warning.",
    }
    n = "Images; those of all candidates are at most as many."
    partial = "Images on the way, of a stream without candidates."
    fields: Schema = {
        "prompt": prompt,
        "model": {"type": "string", "enum": [offer.name]},
        "n": _number("integer", 1, most, n, 1),
        "size": {"type": "string", "enum": ["auto", *offer.sizes], "default": "auto"},
        "response_format": {"type": "string", "enum": ["b64_json"]},
        "stream": {"type": "boolean", "default": False},
        "partial_images": _number("integer", 0, offer.grid - 1, partial, 0),
        "user": _TEXT,
        "seed": _number("integer", 0, 2**32 - 1, "Any where it is left out; the answer has it."),
        "temperature": _number("number", 0, sys.float_info.max, "0 is greedy.", usual.temperature),
        "top_k": _number("integer", 0, 2**31 - 1, "0 is all.", usual.top_k),
        "top_p": {
            **_number("number", 0, 1, "Above 0; 1 is all.", usual.top_p),
            "exclusiveMinimum": 0,
        },
        "guidance": _number("number", 0, MOST_GUIDANCE, "1 is none.", usual.guidance),
    }
    if offer.ranks:
        what = "Images sampled for each that is sent: the best."
        fields["candidates"] = _number("integer", 1, most, what, 1)
    return fields | {
        name: _WITHOUT_EFFECT | ({"type": "string", "enum": list(allowed)} if allowed else {})
        for name, allowed in WITHOUT_EFFECT.items()
    }


def _answers() -> Schema:
    number, whole = {"type": "number"}, {"type": "integer"}
    error = _object(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_or_null(_TEXT))
    item = _object(b64_json=_TEXT, seed=whole, index=whole)
    item["properties"]["score"] = number
    model = {"id": _TEXT, "object": _TEXT, "created": whole, "owned_by": _TEXT}
    return {
        "Error": _object(error=error),
        "Images": _warned(_object(created=whole, data=_list(item))),
        "Texts": _object(data=_list(_object(index=whole, text=_TEXT))),
        "Scores": _warned(_object(data=_list(_object(index=whole, score=number)))),
        "Model": _object(**model, sizes=_list(_TEXT), sampling={"type": "object"}),
    }


def _number(
    kind: str, least: float, most: float, what: str, default: float | None = None
) -> Schema:
    number = {"type": kind, "minimum": least, "maximum": most, "description": what}
    return number if default is None else number | {"default": default}


def _object(**properties: Schema) -> Schema:
    """An object that has all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _warned(answer: Schema) -> Schema:
    """The same, with the field of an answer to a prompt that is cut."""
    what = "There where the prompt is longer than the model reads, and was cut."
    answer["properties"]["warning"] = _TEXT | {"description": what}
    return answer


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Schema) -> Schema:
    """The same, or null, which JSON has for a field that is left out."""
    if "enum" in schema:
        schema = schema | {"enum": [*schema["enum"], None]}
    return schema | {"type": [schema["type"], "null"]} if "type" in schema else schema


def _post(what: str, fields: Schema, needed: list[str], answer: str, form: bool = False) -> Schema:
    """A path that is posted; forms know no null."""
    if not form:
        fields = {
            name: schema if name in needed else _or_null(schema) for name, schema in fields.items()
        }
    schema = {
        "type": "object",
        "properties": fields,
        "required": needed,
        "additionalProperties": False,
    }
    kind = "multipart/form-data" if form else "application/json"
    body = {"required": True, "content": {kind: {"schema": schema}}}
    found = _responses(what, _ref(answer))
    if "stream" in fields:
        found["200"]["content"]["text/event-stream"] = {}
    return {"post": {"summary": what, "requestBody": body, "responses": found}}


def _get(what: str, answer: Schema | None, name: str | None = None) -> Schema:
    """A path that is read: JSON, or plain text where `answer` is None."""
    operation: Schema = {"summary": what, "responses": _responses(what, answer)}
    if name is not None:
        where = {"name": "name", "in": "path", "required": True}
        operation["parameters"] = [where | {"schema": {"type": "string", "enum": [name]}}]
    return {"get": operation}


def _responses(what: str, answer: Schema | None) -> Schema:
    content = {"text/plain": {}} if answer is None else {"application/json": {"schema": answer}}
    wrong = {"application/json": {"schema": _ref("Error")}}
    return {
        "200": {"description": what, "content": content},
        "default": {"description": "An error.", "content": wrong},
    }
