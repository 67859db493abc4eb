"""A seller's account for tests: everything is made through the API, by the calls a person would make."""

from __future__ import annotations

import io
from contextlib import contextmanager
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from models import db
from simulator import Plate, make_sliced_file

PASSWORD = "kein-leichtes-wort"


class Farm:
    """One account. `get`, `post`, `put` and `delete` answer the response; `add_…` answer the JSON of what was made."""

    def __init__(self, app: Flask, email: str) -> None:
        client = app.test_client()
        answer = client.post("/api/auth/register", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        self._enter(client, answer.json)

    @classmethod
    def of(cls, client: FlaskClient, session: dict[str, Any]) -> Farm:
        """The account of a session that was opened otherwise than by registering."""
        farm = cls.__new__(cls)
        farm._enter(client, session)
        return farm

    def _enter(self, client: FlaskClient, session: dict[str, Any]) -> None:
        self.app, self.client = client.application, client
        self.token: str = session["token"]
        self.refresh_token: str = session["refresh_token"]
        self.user: dict[str, Any] = session["user"]

    def call(self, method: str, path: str, **kwargs: Any) -> TestResponse:
        headers = {"Authorization": f"Bearer {self.token}", **kwargs.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **kwargs)

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        return self.call("GET", path, **kwargs)

    def post(self, path: str, json: Any = None, **kwargs: Any) -> TestResponse:
        return self.call("POST", path, **({"json": json} if json is not None else {}), **kwargs)

    def put(self, path: str, json: Any, **kwargs: Any) -> TestResponse:
        return self.call("PUT", path, json=json, **kwargs)

    def delete(self, path: str, **kwargs: Any) -> TestResponse:
        return self.call("DELETE", path, **kwargs)

    def made(self, path: str, json: dict[str, Any]) -> dict[str, Any]:
        answer = self.post(path, json)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json
        return made

    def add_printer(self, name: str = "Left", **fields: Any) -> dict[str, Any]:
        return self.made("/api/printers", {"name": name, **fields})

    def add_material(self, printer_id: int, slot: int = 0, **fields: Any) -> dict[str, Any]:
        body = {"slot": slot, "material_type": "PLA", "color": "#112233", "weight_grams": 1000, "cost_per_kg": 20}
        return self.made(f"/api/bambu/materials/{printer_id}", body | fields)

    def add_print(self, printer_id: int, job_name: str = "A vase", **fields: Any) -> dict[str, Any]:
        return self.made("/api/bambu/scheduled-prints", {"printer_id": printer_id, "job_name": job_name, **fields})

    def add_order(self, *items: dict[str, Any], **fields: Any) -> dict[str, Any]:
        lines = list(items) or [{"title": "Vase", "quantity": 1}]
        return self.made("/api/orders", {"buyer_name": "Ada", "items": lines, **fields})

    def add_profile(self, product_name: str = "Vase", **fields: Any) -> dict[str, Any]:
        return self.made("/api/product-profiles", {"product_name": product_name, **fields})

    def upload(self, content: bytes | None = None, name: str = "vase.gcode.3mf") -> TestResponse:
        content = make_sliced_file(None, [Plate(minutes=30)]) if content is None else content
        return self.call("POST", "/api/print-files", data={"file": (io.BytesIO(content), name)})

    def add_file(self, content: bytes | None = None) -> dict[str, Any]:
        answer = self.upload(content)
        assert answer.status_code == 201, answer.text
        made: dict[str, Any] = answer.json
        return made

    def move(self, print_id: int, *statuses: str, **fields: Any) -> dict[str, Any]:
        """Record moves one after the other; the fields go with the last one."""
        for number, status in enumerate(statuses, 1):
            extra = fields if number == len(statuses) else {}
            if status == "failed" and "failed_reason" not in extra:
                extra = {**extra, "failed_reason": "it came off the plate"}
            answer = self.put(f"/api/bambu/scheduled-prints/{print_id}", {"status": status, **extra})
            assert answer.status_code == 200, answer.text
        moved: dict[str, Any] = answer.json
        return moved

    def get_print(self, print_id: int) -> dict[str, Any] | None:
        found = self.get("/api/bambu/scheduled-prints", query_string={"id": print_id}).json
        return found[0] if found else None

    @contextmanager
    def database(self) -> Any:
        """The database beneath, outside any request."""
        with self.app.app_context():
            yield db.session
            db.session.rollback()
