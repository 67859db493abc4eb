"""All receipts of a shop that changed since a time, page by page, whatever changes at Etsy meanwhile. Pure.

Asked for by the time of the last change, oldest first, each page begins with the second in which the one before it
ended. So it hangs on no offset: what leaves the window while it is read, or comes into it, moves nothing past the
reader. What cannot be walked so, because one second fills a page or Etsy did not keep the order, is read by id and
offset, each page beginning with the last receipt of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from etsy_answers import LATEST_EPOCH_SECONDS, ReceiptPage, Unavailable

SECOND = timedelta(seconds=1)
TRIES = 3


@dataclass(frozen=True, slots=True)
class PageAsked:
    """Times of the last change are aware and have both their ends in; None is no end. Sorted by them, oldest first, or
    with `is_by_id` by the receipt's id, lowest first."""

    earliest: datetime | None
    latest: datetime | None = None
    is_by_id: bool = False
    offset: int = 0


def walk_pages(
    fetch: Callable[[PageAsked], ReceiptPage], earliest: datetime | None
) -> Iterator[tuple[ReceiptPage, datetime | None]]:
    """(page, the time up to which all has come with it; None where that is not known). A receipt may come twice; the
    last page of all may be empty. `fetch` gets a page, and ends the window where no `latest` does.

    Raises:
        Unavailable: receipts move faster than they can be read.
    """
    if earliest is not None:
        earliest = earliest.replace(microsecond=0)
    while True:
        page = fetch(PageAsked(earliest))
        if page.length >= page.count or not page.length:
            yield page, None
            return
        last = _last_change(page)
        if last is not None and (earliest is None or last > earliest):
            yield page, last
            earliest = last
            continue
        is_one_second = last is not None and last == earliest
        yield from _walk_by_id(fetch, earliest, last if is_one_second else None)
        if earliest is None or not is_one_second:
            return
        earliest += SECOND


def _walk_by_id(
    fetch: Callable[[PageAsked], ReceiptPage], earliest: datetime | None, latest: datetime | None
) -> Iterator[tuple[ReceiptPage, datetime | None]]:
    for _ in range(TRIES):
        offset = 0
        last: object = None
        while True:
            page = fetch(PageAsked(earliest, latest, is_by_id=True, offset=offset))
            if last is not None and page.receipts[:1] != (last,):
                # One of those before it has left the window, and one that nobody has seen may have moved up past here.
                break
            yield page, None
            if offset + page.length >= page.count or not page.length:
                return
            last = page.receipts[-1] if len(page.receipts) == page.length > 1 else None
            offset += max(1, page.length - 1)
    raise Unavailable("Etsy's list of receipts does not hold still")


def _last_change(page: ReceiptPage) -> datetime | None:
    """When the last receipt of a page was changed; None unless all are there in the order of their changes."""
    times = [_changed_at(each) for each in page.receipts]
    known = [each for each in times if each is not None]
    if len(known) < page.length or known != sorted(known):
        return None
    return datetime.fromtimestamp(known[-1], UTC)


def _changed_at(receipt: Mapping[str, Any]) -> int | None:
    """Epoch seconds."""
    for name in ("updated_timestamp", "update_timestamp"):
        value = receipt.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < LATEST_EPOCH_SECONDS:
            return value
    return None
