"""Etsy on loopback: a real HTTP server that speaks the part of API v3 that the product uses. Never ships.

`python -m simulator.etsy` serves one shop with a few orders until interrupted. It behaves as Etsy's OpenAPI document of
August 2026 says and as integrators report of the live service, refusals included. Its time is the clock handed to it.
"""

import argparse
import copy
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from werkzeug.exceptions import HTTPException
from werkzeug.http import http_date
from werkzeug.routing import Map, Rule
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from simulator.etsy_login import Logins
from simulator.etsy_receipts import Receipt, ReceiptLine, demo_receipts, epoch_seconds, make_receipt
from simulator.etsy_wire import QueryReader, Refusal, make_response

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

__all__ = ["ReceiptLine", "SeenRequest", "Shipment", "SimulatedEtsy", "SimulatedShop", "make_receipt"]

EARLIEST, LATEST = 946_684_800, 2**40  # epoch seconds; Etsy refuses times before the year 2000
ADDRESS_FIELDS = ("first_line", "second_line", "city", "state", "zip", "country_iso", "formatted_address")
SORT_FIELDS = {"created": "created_timestamp", "updated": "updated_timestamp", "receipt_id": "receipt_id"}
ASCENDING, DESCENDING = ("asc", "ascending", "up"), ("desc", "descending", "down")
RECEIPTS_PATH = "/v3/application/shops/<int:shop_id>/receipts"
# An endpoint with an underscore is the method of SimulatedEtsy that answers it.
ROUTES = Map(
    [
        Rule("/oauth/connect", endpoint="authorize", methods=["GET"]),
        Rule("/v3/public/oauth/token", endpoint="token", methods=["POST"]),
        Rule("/v3/application/users/me", endpoint="_me", methods=["GET"]),
        Rule("/v3/application/shops/<int:shop_id>", endpoint="_shop", methods=["GET"]),
        Rule(RECEIPTS_PATH, endpoint="_receipt_list", methods=["GET"]),
        Rule(f"{RECEIPTS_PATH}/<int:receipt_id>", endpoint="_receipt", methods=["GET"]),
        Rule(f"{RECEIPTS_PATH}/<int:receipt_id>", endpoint="_update_receipt", methods=["PUT"]),
        Rule(f"{RECEIPTS_PATH}/<int:receipt_id>/tracking", endpoint="_add_tracking", methods=["POST"]),
    ]
)


@dataclass(frozen=True, slots=True)
class SimulatedShop:
    etsy_shop_id: int = 12_345_678
    etsy_user_id: int = 900_000_001
    name: str = "PrintedThings"
    currency: str = "EUR"
    country: str = "DE"
    is_vacation: bool = False


@dataclass(frozen=True, slots=True)
class Shipment:
    """A shipping notice as Etsy took it; `tracking_code` is None where the order was merely marked as shipped."""

    receipt_id: int
    tracking_code: str | None
    carrier_name: str | None
    note_to_buyer: str | None


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request as it came in; header names are in lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Fault:
    status: int
    body: object
    headers: dict[str, str]
    after_effect: bool


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """What was asked stands in `SimulatedEtsy.requests`."""

    def send_response(self, code: int, message: str | None = None) -> None:
        """Without the machine's time, which is not Etsy's."""
        self.send_response_only(code, message)


class SimulatedEtsy:
    """A context manager: inside it the server answers at `base_url`, under one lock, one request after another.

    `requests`, `shipments` (each a mail to a buyer) and `receipts` by id may be read, `remaining_today` also set.
    `limit_per_second` is kept by the clock, so a clock that stands still stays in its second; None keeps none.
    `shuffles_ties`: receipts of the same second come in another order each time.
    `delay_seconds` goes by before an answer to a path that ends in `delayed_path`.
    `is_locked_out` is Etsy's treatment of new applications in many countries: no address, no tracking.
    `carriers` are the names of carriers that are taken besides "other", None takes any; `loses_tracking` marks an order
    as shipped and forgets the code, as Etsy has done (issue 466 of etsy/open-api).
    Any redirect address is taken unless `redirect_uris` lists the registered ones. The owner consents at once.
    """

    def __init__(
        self,
        keystring: str,
        shared_secret: str,
        shop: SimulatedShop | None = None,
        seed: int = 0,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        redirect_uris: Iterable[str] | None = None,
        is_locked_out: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.shop = shop or SimulatedShop()
        self.is_locked_out = is_locked_out
        self.requests: list[SeenRequest] = []
        self.shipments: list[Shipment] = []
        self.receipts: dict[int, Receipt] = {}
        self.limit_per_day = self.remaining_today = 10_000
        self.limit_per_second: int | None = None
        self.delay_seconds = 0.0
        self.delayed_path = ""
        # The paths of all requests, also of those that wait for their answer: `requests` holds the answered ones.
        self.arrived: list[str] = []
        self.carriers: set[str] | None = None
        self.loses_tracking = False
        # In place of the true time as a Date header.
        self.told_time: str | None = None
        self.shuffles_ties = False
        self._random = random.Random(seed)
        self._keystring = keystring
        self._shared_secret = shared_secret
        self._clock = clock
        self._logins = Logins(
            keystring=keystring,
            etsy_user_id=self.shop.etsy_user_id,
            redirect_uris=redirect_uris,
            clock=clock,
            randomness=random.Random(seed),
        )
        self._second = self._in_second = 0
        self._lock = threading.Lock()
        self._faults: deque[_Fault | None] = deque()
        self._server: BaseWSGIServer = make_server(
            host, port, self._application, threaded=True, request_handler=_QuietHandler
        )
        # The default looks for a shutdown twice a second: too slow for a server per test.
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, name="simulated-etsy", daemon=True
        )
        self.base_url = f"http://{host}:{self._server.server_port}"
        self.authorize_url = f"{self.base_url}/oauth/connect"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add_receipt(self, receipt: Receipt) -> None:
        """An order of the shop, new or in place of the one with its id."""
        with self._lock:
            self.receipts[receipt["receipt_id"]] = copy.deepcopy(receipt)

    def change_receipt(self, receipt_id: int, *, is_noticed: bool = True, **fields: object) -> None:
        """Sets fields of an order. Not `is_noticed`: its updated time stays, as Etsy does on refunds (issue 513)."""
        with self._lock:
            receipt = self.receipts[receipt_id]
            receipt.update(copy.deepcopy(fields))
            if is_noticed:
                self._touch(receipt)

    def revoke_tokens(self) -> None:
        """What a change of the owner's password does."""
        with self._lock:
            self._logins.revoke()

    def fail_next(
        self,
        status: int,
        body: object,
        *,
        headers: Mapping[str, str] | None = None,
        times: int = 1,
        after_effect: bool = False,
        skip: int = 0,
    ) -> None:
        """The next request is answered so: a text as HTML, anything else as JSON. With `after_effect` it is carried out
        first and only its answer is lost; `skip` requests are answered as usual before."""
        with self._lock:
            self._faults.extend([None] * skip)
            self._faults.extend([_Fault(status, body, dict(headers or {}), after_effect)] * times)

    def _application(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        request = Request(environ)
        body = request.get_data(cache=True)
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.arrived.append(request.path)
        time.sleep(self.delay_seconds if request.path.endswith(self.delayed_path) else 0)
        with self._lock:
            self.requests.append(SeenRequest(request.method, request.path, request.args.to_dict(False), headers, body))
            fault = self._faults.popleft() if self._faults else None
            if fault is None or fault.after_effect:
                response = self._answer(request)
            if fault is not None:
                response = make_response(fault.status, fault.body, fault.headers)
            response.headers["Date"] = http_date(self._clock()) if self.told_time is None else self.told_time
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        try:
            endpoint, arguments = ROUTES.bind_to_environ(request.environ).match()
            if endpoint == "authorize":
                return self._logins.authorize(request)
            self._check_key(request.headers.get("x-api-key"))
            self._count_call()
            self._check_second()
            if endpoint == "token":
                response = self._logins.token(request)
            else:
                handler: Callable[..., Response] = getattr(self, endpoint)
                response = handler(request, **arguments)
        except Refusal as refusal:
            return refusal.response
        except HTTPException as error:
            return make_response(error.code or 500, {"error": error.name})
        response.headers["x-limit-per-second"] = str(self.limit_per_second or 10)
        response.headers["x-remaining-this-second"] = str((self.limit_per_second or 10) - self._in_second)
        response.headers["x-limit-per-day"] = str(self.limit_per_day)
        response.headers["x-remaining-today"] = str(self.remaining_today)
        return response

    def _check_key(self, key: str | None) -> None:
        if key is None:
            raise Refusal(403, {"error": "Missing x-api-key header."})
        if key == self._keystring:
            raise Refusal(403, {"error": "Shared secret is required in x-api-key header."})
        if key.count(":") != 1:
            raise Refusal(403, {"error": "x-api-key must have the format keystring:shared_secret."})
        if key != f"{self._keystring}:{self._shared_secret}":
            raise Refusal(403, {"error": "Invalid API key."})

    def _count_call(self) -> None:
        if self.remaining_today <= 0:
            raise Refusal(429, {"error": "Exceeded the daily rate limit."}, {"retry-after": "86400"})
        self.remaining_today -= 1

    def _check_second(self) -> None:
        now = epoch_seconds(self._clock())
        self._second, self._in_second = now, self._in_second + 1 if now == self._second else 1
        if self.limit_per_second is None:
            self._in_second = 1
        elif self._in_second > self.limit_per_second:
            raise Refusal(429, {"error": "Exceeded the rate limit per second."}, {"retry-after": "1"})

    def _me(self, request: Request) -> Response:
        self._logins.check_access(request, "shops_r")
        return make_response(200, {"user_id": self.shop.etsy_user_id, "shop_id": self.shop.etsy_shop_id})

    def _shop(self, request: Request, shop_id: int) -> Response:
        self._check_shop(shop_id)
        return make_response(
            200,
            {
                "shop_id": shop_id,
                "user_id": self.shop.etsy_user_id,
                "shop_name": self.shop.name,
                "title": None,
                "currency_code": self.shop.currency,
                "is_vacation": self.shop.is_vacation,
                "url": f"https://www.etsy.com/shop/{self.shop.name}",
                "shop_location_country_iso": self.shop.country,
            },
        )

    def _check_shop(self, shop_id: int) -> None:
        if shop_id != self.shop.etsy_shop_id:
            raise Refusal(404, {"error": "Resource not found"})

    def _receipt_list(self, request: Request, shop_id: int) -> Response:
        self._logins.check_access(request, "transactions_r")
        self._check_shop(shop_id)
        query = QueryReader(request.args)
        limit = query.number("limit", 25, 1, 100)
        offset = query.number("offset", 0, 0, 2**31)
        windows = [
            (
                stamp,
                query.number(f"min_{name}", EARLIEST, EARLIEST, LATEST),
                query.number(f"max_{name}", LATEST, EARLIEST, LATEST),
            )
            for stamp, name in (("created_timestamp", "created"), ("updated_timestamp", "last_modified"))
        ]
        wanted = {name: query.boolean(name) for name in ("was_paid", "was_shipped", "was_canceled")}
        sort_field = SORT_FIELDS[query.word("sort_on", "created", tuple(SORT_FIELDS))]
        is_descending = query.word("sort_order", "desc", ASCENDING + DESCENDING) in DESCENDING
        query.refuse_faults()
        # Cancelled orders are left out unless asked for (issue 629).
        wanted["was_canceled"] = wanted["was_canceled"] or False
        found = [
            receipt
            for receipt in self.receipts.values()
            if all(earliest <= receipt[name] <= last for name, earliest, last in windows)
            and all(value is None or _facts(receipt)[name] is value for name, value in wanted.items())
        ]
        found.sort(
            key=lambda receipt: (
                receipt[sort_field],
                self._random.random() if self.shuffles_ties else 0,
                receipt["receipt_id"],
            ),
            reverse=is_descending,
        )
        page = [self._shown(receipt) for receipt in found[offset : offset + limit]]
        return make_response(200, {"count": len(found), "results": page})

    def _receipt(self, request: Request, shop_id: int, receipt_id: int) -> Response:
        self._logins.check_access(request, "transactions_r")
        return make_response(200, self._shown(self._find_receipt(shop_id, receipt_id)))

    def _update_receipt(self, request: Request, shop_id: int, receipt_id: int) -> Response:
        self._logins.check_access(request, "transactions_w")
        receipt = self._find_receipt(shop_id, receipt_id)
        query = QueryReader(request.form)
        was_shipped, was_paid = query.boolean("was_shipped"), query.boolean("was_paid")
        query.refuse_faults()
        if was_paid is not None:
            receipt.update(is_paid=was_paid, status="Paid" if was_paid else "Open")
        if was_shipped is not None:
            self._set_shipped(receipt, was_shipped)
        self._touch(receipt)
        return make_response(200, self._shown(receipt))

    def _add_tracking(self, request: Request, shop_id: int, receipt_id: int) -> Response:
        self._logins.check_access(request, "transactions_w")
        if self.is_locked_out:
            raise Refusal(403, {"error": "Unauthorized"})
        receipt = self._find_receipt(shop_id, receipt_id)
        # JSON under a form's content type is taken, its tracking lost, the order shipped all the same (issue 466).
        sent = request.get_json() if request.is_json else request.form.to_dict()
        if not isinstance(sent, dict) or not all(
            isinstance(sent.get(name, ""), str) for name in ("tracking_code", "carrier_name", "note_to_buyer")
        ):
            raise Refusal(400, [{"path": "", "type": "type", "message": "tracking is given as texts"}])
        code, carrier = sent.get("tracking_code") or None, sent.get("carrier_name") or None
        if (code is None or carrier is None) and self._needs_tracking(receipt):
            raise Refusal(400, {"error": "A tracking number is required"})
        if carrier and self.carriers is not None and carrier not in {*self.carriers, "other"}:
            raise Refusal(400, {"error": f"Invalid carrier_name: {carrier}"})
        self._set_shipped(receipt, True)
        self._touch(receipt)
        if code and carrier and not self.loses_tracking:
            receipt["shipments"].append(
                {
                    "receipt_shipping_id": receipt_id * 10 + len(receipt["shipments"]),
                    "shipment_notification_timestamp": epoch_seconds(self._clock()),
                    "carrier_name": carrier,
                    "tracking_code": code,
                }
            )
        self.shipments.append(Shipment(receipt_id, code, carrier, sent.get("note_to_buyer")))
        return make_response(200, self._shown(receipt))

    def _find_receipt(self, shop_id: int, receipt_id: int) -> Receipt:
        self._check_shop(shop_id)
        if receipt_id not in self.receipts:
            raise Refusal(404, {"error": "Resource not found"})
        return self.receipts[receipt_id]

    def _shown(self, receipt: Receipt) -> Receipt:
        return {**receipt, **dict.fromkeys(ADDRESS_FIELDS)} if self.is_locked_out else receipt

    def _needs_tracking(self, receipt: Receipt) -> bool:
        """United States domestic over 10 dollars, and anything to India."""
        total = receipt["grandtotal"]
        is_domestic = self.shop.country == receipt["country_iso"] == "US"
        return receipt["country_iso"] == "IN" or bool(is_domestic and total["amount"] > 10 * total["divisor"])

    def _touch(self, receipt: Receipt) -> None:
        receipt["update_timestamp"] = receipt["updated_timestamp"] = epoch_seconds(self._clock())

    def _set_shipped(self, receipt: Receipt, is_shipped: bool) -> None:
        receipt.update(is_shipped=is_shipped, status="Completed" if is_shipped else "Paid")
        for line in receipt["transactions"]:
            if not is_shipped:
                line["shipped_timestamp"] = None
            elif line["shipped_timestamp"] is None:
                line["shipped_timestamp"] = line["expected_ship_date"] = epoch_seconds(self._clock())


def _facts(receipt: Receipt) -> dict[str, bool]:
    return {
        "was_paid": receipt["is_paid"],
        "was_shipped": receipt["is_shipped"],
        "was_canceled": receipt["status"].casefold() == "canceled",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a simulated Etsy shop with a few orders.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--keystring", default="simulated-keystring")
    parser.add_argument("--shared-secret", default="simulated-secret")
    chosen = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT is ignored by what a shell started in the background
        signal.signal(number, lambda *_: stop.set())
    etsy = SimulatedEtsy(chosen.keystring, chosen.shared_secret, host=chosen.host, port=chosen.port)
    for receipt in demo_receipts(datetime.now(UTC)):
        etsy.add_receipt(receipt)
    with etsy:
        print(etsy.base_url, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
