"""When a delivery that did not arrive is tried again, and when no more. Pure.

The steps are those that Standard Webhooks recommends (standardwebhooks.com, "Deliverability and reliability").
"""

from __future__ import annotations

from datetime import timedelta

# Before the first try, the second and so on: after the eighth nothing is left to hope for.
STEPS = (
    timedelta(0),
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=10),
)
# So much of a step is added at most, by chance: receivers that were down together are not called together.
JITTER = 0.1
# An endpoint that has failed for so long without a break is switched off.
ENDPOINT_PATIENCE = timedelta(days=5)


def delay_after(tries: int, chance: float) -> timedelta | None:
    """How long to wait after so many failed tries; None when that was the last. `chance` is from 0 up to 1."""
    if tries >= len(STEPS):
        return None
    return STEPS[tries] * (1 + JITTER * chance)
