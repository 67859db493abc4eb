"""A process of its own that asks the simulated Etsy, as a second web process or a worker does.

`python -m tests.etsy_process ACT SHOP_ID NOW`, with the app's environment: says `ready`, waits for a line, acts, says
`done`. ACT is `sync`, `refresh`, or `ship:USER_ID:ORDER_ID:CODE`.
"""

from __future__ import annotations

import sys
from datetime import datetime

from app import create_app
from errors import Conflict
from etsy_client import ReconnectNeeded
from etsy_shipping import Parcel, ship_order
from etsy_sync import sync_shop
from etsy_tokens import ShopCalls
from settings import Settings


def main() -> None:
    act, shop_id, now = sys.argv[1], int(sys.argv[2]), datetime.fromisoformat(sys.argv[3])
    app = create_app(Settings.from_environment(), clock=lambda: now)
    access = app.extensions["parts"].etsy_access()
    with app.app_context():
        print("ready", flush=True)
        sys.stdin.readline()
        if act == "sync":
            sync_shop(shop_id, access)
        elif act.startswith("ship:"):
            _, user_id, order_id, code = act.split(":")
            try:
                ship_order(int(user_id), int(order_id), Parcel(code, "dhl"), access)
            except Conflict as refusal:
                print(refusal.code, flush=True)
        else:
            try:
                calls = ShopCalls(shop_id, access)
                calls.ask(lambda client, token: client.get_shop(token, calls.etsy_shop_id))
            except ReconnectNeeded:
                print("reconnect", flush=True)
    print("done", flush=True)


if __name__ == "__main__":
    main()
