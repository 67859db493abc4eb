"""The demo's seller: a person with a browser and curl. Knows the product only by its HTTP API."""

from __future__ import annotations

from typing import Any

import requests

from simulator.demo_stage import DemoFailed, Stage

EMAIL, PASSWORD = "demo@example.com", "a-vase-for-robin"
TIMEOUT_SECONDS = 20.0


class Seller:
    """Calls answer the JSON that came. Each raises DemoFailed, in words, for anything but success."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._session = requests.Session()
        self._session.trust_env = False

    def get(self, path: str, **query: Any) -> Any:
        return self._call("GET", path, params=query)

    def post(self, path: str, json: Any = None) -> Any:
        return self._call("POST", path, json=json)

    def put(self, path: str, json: Any) -> Any:
        return self._call("PUT", path, json=json)

    def upload(self, file_name: str, content: bytes) -> Any:
        return self._call("POST", "/api/print-files", files={"file": (file_name, content)})

    def register(self) -> Any:
        """Opens the demo's account; later calls carry its token."""
        answer = self.post("/api/auth/register", {"email": EMAIL, "password": PASSWORD, "username": "Demo shop"})
        self._session.headers["Authorization"] = f"Bearer {answer['token']}"
        return answer["user"]

    def connect_etsy(self) -> Any:
        """The login at Etsy, as a browser does it: there, consent, and back with Etsy's redirect."""
        login = self.get("/api/auth/etsy/login")
        with requests.Session() as browser:
            browser.trust_env = False
            browser.cookies.update(self._session.cookies)
            # Etsy must see the browser's cookies only, never our token.
            answer = self._sent(browser, "GET", login["auth_url"])
        return answer["user"]["shops"]

    def find_prints(self, order_id: int) -> list[dict[str, Any]]:
        """The prints of an order, oldest first."""
        return list(reversed(self.get("/api/bambu/scheduled-prints", order_id=order_id)))

    def _call(self, method: str, path: str, **options: Any) -> Any:
        return self._sent(self._session, method, f"{self._stage.base_url}{path}", **options)

    def _sent(self, session: requests.Session, method: str, url: str, **options: Any) -> Any:
        path = url.removeprefix(self._stage.base_url).partition("?")[0]
        try:
            answer = session.request(method, url, timeout=TIMEOUT_SECONDS, **options)
            body = answer.json()
        except requests.RequestException as error:
            self._stage.require_app()
            what = f"{method} {path} got no usable answer ({type(error).__name__})."
            raise DemoFailed(f"{what} {self._stage.log_hint()}") from None
        if not answer.ok:
            raise DemoFailed(f"{method} {path} answered {answer.status_code}: {_words(body)} {self._stage.log_hint()}")
        return body


def _words(body: Any) -> str:
    """Our error shape as a sentence."""
    if not isinstance(body, dict):
        return str(body)[:300]
    faults = [f"{name}: {' '.join(texts)}" for name, texts in (body.get("fields") or {}).items()]
    return " ".join([str(body.get("error", body))[:300], *faults])
