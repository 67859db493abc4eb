"""Whether an order can go out: what of it is not printed yet, and whether Etsy holds its tracking. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from farm.orders import PrintOfOrder, production_status_of
from models import OrderItem, PrintStatus, ProductionStatus

WORDS = {
    ProductionStatus.queued: "waits for a printer",
    ProductionStatus.printing: "is not done yet",
    ProductionStatus.attention: "failed and was not printed again",
}
NAMED_PRINTS = 10

LOST_TRACKING = (
    "Etsy has marked the order as shipped but does not show the tracking number. Open the order there (Shop Manager, "
    "Orders & Shipping) and add it by hand: {tracking}."
)


def unfinished(items: Iterable[OrderItem], prints: Sequence[PrintOfOrder]) -> list[str]:
    """A sentence for each line whose prints are not all done; empty when the order can be shipped.

    A line without a print keeps the order back, too, unless a print was linked to the order by hand: that may be any
    line's. Digital lines are in no parcel.
    """
    loose = [each for each in prints if each.order_item_id is None]
    has_loose = any(each.status is PrintStatus.completed for each in loose)
    sentences = []
    for item in items:
        own = [each for each in prints if each.order_item_id == item.id]
        status = production_status_of(own)
        if status is ProductionStatus.new:
            if not item.is_digital and not has_loose:
                sentences.append(f"{item.title}: has no print yet")
        elif status is not ProductionStatus.printed:
            sentences.append(f"{item.title}: {WORDS[status]} ({_named(own)})")
    status = production_status_of(loose)
    if status in WORDS:
        sentences.append(f"Linked by hand: {WORDS[status]} ({_named(loose)})")
    return sentences


def _named(prints: Iterable[PrintOfOrder]) -> str:
    ids = [str(each.id) for each in prints if not each.is_deleted and each.status is not PrintStatus.completed]
    more = f" and {len(ids) - NAMED_PRINTS} more" if len(ids) > NAMED_PRINTS else ""
    return f"print {', '.join(ids[:NAMED_PRINTS])}{more}"


def is_same_code(one: str | None, other: str | None) -> bool:
    """Whether two tracking codes are one: blanks and the case of letters do not count. None is no code at all."""
    return _bare(one) == _bare(other)


def _bare(code: str | None) -> str:
    return "".join((code or "").split()).casefold()


def say_tracking(tracking_code: str | None, carrier_name: str | None) -> str:
    """As it stands in a sentence."""
    if tracking_code is None:
        return "no tracking number"
    carrier = f" of {carrier_name}" if carrier_name else ""
    return f"the tracking number {tracking_code}{carrier}"
