"""The OpenAPI document and its page: `/api/openapi.json`, `/api/docs`. Nothing is fetched from elsewhere."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from flask import Blueprint, Flask, Response, current_app, send_from_directory
from flask_smorest import Api

from api import webhook_schema
from api.fields import ErrorSchema
from api.lists import json_response

VERSION = "1.0.0"
ASSETS = files("flask_swagger_ui") / "dist"
ASSET_NAMES = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Print farm API</title>
<link rel="stylesheet" href="/api/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/api/docs/favicon-32x32.png">
</head>
<body>
<div id="page"></div>
<script src="/api/docs/swagger-ui-bundle.js"></script>
<script src="/api/docs/page.js"></script>
</body>
</html>
"""
SCRIPT = """SwaggerUIBundle({
  url: "/api/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  persistAuthorization: true,
  docExpansion: "none",
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
});
"""
# The page needs its own scripts, styles and the images that the styles carry inline; nothing else, from nowhere else.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# What the bare arrays say besides their rows (`api.lists.bare_page`).
LIST_HEADERS = {
    "X-Total-Count": {"description": "How many there are in all", "schema": {"type": "integer"}, "required": True},
    "Link": {"description": 'The next page as rel="next", while there is one', "schema": {"type": "string"}},
}

blueprint = Blueprint("docs", __name__)


class FarmApi(Api):
    """flask-smorest with our error shape; errors themselves are made in `errors.py`."""

    ERROR_SCHEMA = ErrorSchema

    def _register_error_handlers(self) -> None:
        """None of its own."""


def make_api(app: Flask) -> Api:
    app.config.update(
        API_TITLE="Print farm API",
        API_VERSION=VERSION,
        OPENAPI_VERSION="3.1.0",
        API_SPEC_OPTIONS={
            "info": {
                "description": "From an Etsy order to a finished print on a Bambu Lab printer. "
                "Times are RFC 3339 in UTC; PUT changes only the keys sent; somebody else's object is 404."
            },
            "security": [{"bearer": []}],
        },
    )
    api = FarmApi(app)
    api.spec.components.security_scheme("bearer", {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"})
    webhook_schema.add_schemas(api.spec)
    return api


def document(app: Flask) -> dict[str, Any]:
    """The OpenAPI document, with the public operations marked as needing no token."""
    made: dict[str, Any] = app.extensions["api"].spec.to_dict()
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            if not isinstance(operation, dict) or "responses" not in operation:
                continue
            if app.extensions["is_public"](path, method):
                operation["security"] = []
            error = {"$ref": "#/components/responses/DEFAULT_ERROR"}
            operation["responses"].setdefault("default", error)
            for answer in operation["responses"].values():
                content = answer.get("content", {})
                content.pop("", None)
                if content.get("application/json", {}).get("schema", {}).get("type") == "array":
                    answer["headers"] = LIST_HEADERS
    made["webhooks"] = webhook_schema.webhooks()
    return made


@blueprint.get("/api/openapi.json")
def get_document() -> Response:
    if "openapi" not in current_app.extensions:
        current_app.extensions["openapi"] = json_response(document(current_app._get_current_object())).get_data()  # type: ignore[attr-defined]
    return Response(current_app.extensions["openapi"], mimetype="application/json")


@blueprint.get("/api/docs")
def get_page() -> Response:
    return Response(PAGE, mimetype="text/html", headers={"Content-Security-Policy": PAGE_POLICY})


@blueprint.get("/api/docs/<asset>")
def get_asset(asset: str) -> Response:
    if asset == "page.js":
        return Response(SCRIPT, mimetype="text/javascript")
    return send_from_directory(str(ASSETS), asset if asset in ASSET_NAMES else "missing")
