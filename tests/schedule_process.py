"""A process of its own that schedules a user's paid orders, as a second worker does.

`python -m tests.schedule_process USER_ID NOW`, with the app's environment: says `ready`, waits for a line, says how
many orders it scheduled.
"""

from __future__ import annotations

import sys
from datetime import datetime

from app import configure_logging, create_app
from etsy_api import schedule_paid_orders
from settings import Settings


def main() -> None:
    user_id, now = int(sys.argv[1]), datetime.fromisoformat(sys.argv[2])
    # To stderr: what is said here is read.
    configure_logging()
    app = create_app(Settings.from_environment(), clock=lambda: now)
    with app.app_context():
        print("ready", flush=True)
        sys.stdin.readline()
        print(len(schedule_paid_orders(user_id, now)), flush=True)


if __name__ == "__main__":
    main()
