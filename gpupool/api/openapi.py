"""GET /openapi.json: what is served here, for machines (worker process).

Made from the tables by which requests are checked, so that it says what holds: names, types and
ranges. Where an engine's own application takes more than a type, there is none.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app, jsonify

from gpupool import __version__
from gpupool.api.openai.checks import FLAGS, OWN_NUMBERS, REQUIRED, Able
from gpupool.api.openai.content import MAX_MESSAGES
from gpupool.api.openai.routes import MODELS, ROUTES, Route
from gpupool.api.params import ALIASES, CLIENTS_OWN
from gpupool.api.params import FLAGS as INFER_FLAGS
from gpupool.api.values import MAX_STOP_CHARS, MAX_STOPS, NUMBERS, Number
from gpupool.replica import Replica

blueprint = Blueprint("openapi", __name__)

Json = dict[str, Any]

TEXTS: Json = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            "minItems": 1,
        },
    ]
}
STOP: Json = {
    "anyOf": [
        {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS},
            "maxItems": MAX_STOPS,
        },
    ]
}
MESSAGES: Json = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string"},
            "content": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "object"}},
                    {"type": "null"},
                ]
            },
        },
    },
}
OBJECT: Json = {"type": "object"}
SPECIAL: dict[str, Json] = {
    "model": {"type": "string"},
    "messages": MESSAGES,
    "prompt": TEXTS,
    "input": TEXTS,
    "stop": STOP,
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "logit_bias": {"type": "object", "additionalProperties": {"type": "number"}},
    "tools": {"type": "array", "items": OBJECT},
    "response_format": OBJECT,
    "structured_outputs": OBJECT,
}
ERROR: Json = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


@blueprint.get("/openapi.json")
def openapi() -> Response:
    """The document; 503 until the engine, which decides what there is, has loaded."""
    replica: Replica = current_app.extensions["gpupool"]
    replica.ready_engine()
    able = replica.front.able if replica.front is not None else None
    return jsonify(describe(able))


def describe(able: Able | None) -> Json:
    """The document; without `able` the routes of the OpenAI API are left out."""
    paths: Json = {
        "/infer": {"post": _operation("Generate for, or score, every instance", _infer_body())},
        **{
            path: {"get": _operation(summary)}
            for path, summary in {
                "/livez": "This process answers",
                "/readyz": "Whether a worker can generate",
                "/metrics": "Prometheus metrics of the whole pool",
                "/pool": "Every worker, and what the engine can do",
            }.items()
        },
    }
    if able is not None:
        paths[MODELS] = {"get": _operation("The model and its names")}
        for path, names in sorted(able.fields.items()):
            if path in ROUTES:
                body = _openai_body(ROUTES[path], names)
                paths[path] = {"post": _operation(f"{ROUTES[path].kind}: {path}", body)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gpupool", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _operation(summary: str, body: Json | None = None) -> Json:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: Json = {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer"},
            "4XX": {"description": "What is wrong with the request", "content": error},
            "5XX": {"description": "Nobody can answer now", "content": error},
        },
    }
    if body is not None:
        content = {"application/json": {"schema": body}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _infer_body() -> Json:
    params = {name: _number(rule) for name, rule in NUMBERS.items()}
    params |= {name: {"type": "boolean"} for name in INFER_FLAGS}
    params |= {alias: params[name] for alias, name in ALIASES.items()}
    params |= {name: {} for name in CLIENTS_OWN}
    params |= {"stop": STOP, "logit_bias": SPECIAL["logit_bias"], "early_stopping": {}}
    params["stop_token_ids"] = {"type": "array", "items": {"type": "integer"}}
    return {
        "type": "object",
        "required": ["instances"],
        "additionalProperties": False,
        "properties": {
            "instances": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
                ]
            },
            "params": {
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": {name: _or_null(schema) for name, schema in params.items()},
            },
            "detail": {"type": "boolean"},
        },
    }


def _openai_body(route: Route, names: frozenset[str]) -> Json:
    required = REQUIRED.get(route.kind)
    return {
        "type": "object",
        "required": [required] if required else [],
        "additionalProperties": False,
        "properties": {
            name: _schema_of(route, name) if name == required else _or_null(_schema_of(route, name))
            for name in sorted(names)
        },
    }


def _schema_of(route: Route, name: str) -> Json:
    if name in FLAGS or (name == "logprobs" and route.kind == "chat"):
        return {"type": "boolean"}
    if name in NUMBERS:
        return _number(NUMBERS[name])
    if name in OWN_NUMBERS:
        return _number(OWN_NUMBERS[name])
    return SPECIAL.get(name, {})


def _number(rule: Number) -> Json:
    kind = "integer" if rule.kind is int else "number"
    return {"type": kind, "minimum": rule.low, "maximum": rule.high}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}
