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

    @property
    def token(self) -> str:
        return str(self._session.headers["Authorization"]).removeprefix("Bearer ")

    def connect_etsy(self) -> Any:
        """The login at Etsy, as a browser does it: there, consent, and back with Etsy's redirect. The account."""
        return self._pass_by_etsy(self._session)

    def sign_in_with_etsy(self) -> Any:
        """The same in a browser that knows no token and no password: the account that this opens."""
        with requests.Session() as stranger:
            stranger.trust_env = False
            return self._pass_by_etsy(stranger)

    def _pass_by_etsy(self, session: requests.Session) -> Any:
        login = self._sent(session, "GET", f"{self._stage.base_url}/api/auth/etsy/login")
        with requests.Session() as browser:
            browser.trust_env = False
            browser.cookies.update(session.cookies)
            # Etsy must see the browser's cookies only, never our token.
            return self._sent(browser, "GET", login["auth_url"])["user"]

    def get_page(self, path: str) -> str:
        """A page to print, as HTML."""
        answer = self._answer(self._session, "GET", f"{self._stage.base_url}{path}")
        if not answer.ok or not answer.headers["Content-Type"].startswith("text/html"):
            raise DemoFailed(f"GET {path} answered {answer.status_code}, no page. {self._stage.log_hint()}")
        return answer.text

    def find_prints(self, order_id: int) -> list[dict[str, Any]]:
        """The prints of an order, oldest first."""
        return list(reversed(self.get("/api/bambu/scheduled-prints", order_id=order_id)))

    def _call(self, method: str, path: str, **options: Any) -> Any:
        return self._sent(self._session, method, f"{self._stage.base_url}{path}", **options)

    def _sent(self, session: requests.Session, method: str, url: str, **options: Any) -> Any:
        answer = self._answer(session, method, url, **options)
        try:
            body = answer.json()
        except requests.RequestException as error:
            raise self._unusable(method, url, error) from None
        if not answer.ok:
            raise DemoFailed(
                f"{method} {self._path(url)} answered {answer.status_code}: {_words(body)} {self._stage.log_hint()}"
            )
        return body

    def _answer(self, session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        try:
            return session.request(method, url, timeout=TIMEOUT_SECONDS, **options)
        except requests.RequestException as error:
            raise self._unusable(method, url, error) from None

    def _unusable(self, method: str, url: str, error: requests.RequestException) -> DemoFailed:
        self._stage.require_app()
        what = f"{method} {self._path(url)} got no usable answer ({type(error).__name__})."
        return DemoFailed(f"{what} {self._stage.log_hint()}")

    def _path(self, url: str) -> str:
        return url.removeprefix(self._stage.base_url).partition("?")[0]


def _words(body: Any) -> str:
    """Our error shape as a sentence."""
    if not isinstance(body, dict):
        return str(body)[:300]
    faults = [f"{name}: {' '.join(texts)}" for name, texts in (body.get("fields") or {}).items()]
    return " ".join([str(body.get("error", body))[:300], *faults])
