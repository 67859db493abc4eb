"""The demo's judges: each can go against the product."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from simulator import SimulatedPrinter, StartRecord
from simulator import demo_etsy_judges as etsy_judges
from simulator import demo_judges as judges
from simulator.demo_checks import Check, CheckList
from simulator.demo_goods import CARRIER, CLIPS, LINES, RECEIPT_ID, TRACKING, VASE
from simulator.demo_stage import WEATHER_KEY, Post, Scene, Stage
from simulator.demo_watch import Lane, Sighting
from simulator.etsy import SeenRequest, Shipment, SimulatedEtsy, make_receipt
from simulator.sinks import WebhookReceiver
from simulator.weather import SimulatedWeather
from tests.test_demo import OTHER_SECRET, free_port


def test_nothing_counts_as_seen_until_it_was() -> None:
    checks = CheckList()
    assert not checks.is_whole
    assert {finding.words for finding in checks.findings} == {"never reached"}
    checks.settle(Check.PRINTERS, [], "two")
    checks.break_off("the app has ended")
    assert checks.reasons == ["the app has ended"]
    first, second, third, *_ = checks.findings
    assert (first.was_seen, second.was_seen, second.words) == (True, False, "the app has ended")
    assert third.words == "never reached"
    for check in Check:
        checks.settle(check, [], "seen")
    assert checks.is_whole
    checks.settle(Check.MAIL, ["3 of 8 came"], "8 came")
    assert not checks.is_whole


@pytest.fixture
def lane() -> Iterator[Lane]:
    """A printer, switched off, on which print 1 went by the book."""
    printer = SimulatedPrinter("01P00A000000007", "12345678")
    at = datetime(2026, 11, 21, tzinfo=UTC)
    printer.machine.starts.append(StartRecord(1.0, at, "100001", "ftp://a.3mf", "Metadata/plate_1.gcode", "accepted"))
    with WebhookReceiver() as receiver:
        lane = Lane(Post("Left", printer, receiver, 1, 1), [1])
        lane.sightings[1] = Sighting(24.0, 210.0, 220.0, {1, 2, 3}, 3, True, "farm-100001.gcode.3mf", "abc")
        yield lane
    printer.stop()


def judge(lane: Lane, *, events: str = "queued scheduled started completed", grams_left: float = 981.7) -> set[Check]:
    """What is missed of what a printer, its ledger and its print's history tell."""
    checks = CheckList()
    words = events.split()
    history = [{"to_status": to, "from_status": before} for before, to in zip(["", *words], words, strict=False)]
    spool = {"slot": 0, "material_type": "PLA", "remaining_grams": grams_left, "used_grams": 18.3, "cost_used": 0.46}
    judges.judge_uploads(checks, [lane], {1: "abc"})
    judges.judge_starts(checks, [lane])
    judges.judge_reports(checks, [lane])
    judges.judge_moves(checks, [lane], {1: history})
    judges.judge_filament(checks, [lane], {1: {"material_type": "PLA", "estimated_grams": 18.3}}, {"Left": [spool]})
    judged = (Check.UPLOAD, Check.START, Check.REPORT, Check.MOVES, Check.FILAMENT)
    return {each.check for each in checks.findings if each.check in judged and not each.was_seen}


def test_each_judgement_can_go_against_the_product(lane: Lane) -> None:
    assert judge(lane) == set()
    assert judge(lane, grams_left=981.6) == {Check.FILAMENT}
    assert judge(lane, events="queued scheduled started failed queued scheduled started completed") == {Check.MOVES}
    assert judge(lane, events="queued started completed") == {Check.MOVES}
    lane.sightings[1].stored_sha256 = "abd"
    lane.sightings[1].coldest = None
    assert judge(lane) == {Check.UPLOAD, Check.REPORT}
    lane.sightings[1].coldest, lane.sightings[1].layers = 24.0, {3}
    assert judge(lane) == {Check.UPLOAD, Check.REPORT}
    del lane.sightings[1]
    starts = lane.post.printer.machine.starts
    starts.append(starts[0])
    assert judge(lane) == {Check.UPLOAD, Check.REPORT, Check.START}
    starts.clear()
    assert Check.START in judge(lane)


def missed(check: Check, judge: Callable[[CheckList], None]) -> str:
    """What is missed, in words; empty if nothing is."""
    checks = CheckList()
    judge(checks)
    (found,) = [each for each in checks.findings if each.check is check]
    return "" if found.was_seen else found.words


def test_a_parcel_that_etsy_does_not_hold_or_was_told_of_twice_is_missed() -> None:
    order = {"production_status": "shipped", "tracking_number": TRACKING}
    told = {"sent": True, "tracking_stored": True, "reason": None}
    notice = Shipment(RECEIPT_ID, TRACKING, CARRIER, None)
    call = SeenRequest("POST", f"/v3/application/shops/1/receipts/{RECEIPT_ID}/tracking", {}, {}, b"")

    def shipped(*parcels: tuple[str, str], status: str = "Completed", **says: object) -> str:
        receipt = make_receipt(receipt_id=RECEIPT_ID, lines=LINES, status=status)
        receipt["shipments"] = [{"carrier_name": name, "tracking_code": code} for name, code in parcels]
        return missed(Check.SHIPPED, lambda checks: etsy_judges.judge_shipped(checks, receipt, order | says, told))

    assert shipped((CARRIER, TRACKING)) == ""
    assert shipped() == f"Etsy holds no tracking number instead of dhl {TRACKING}"
    assert shipped((CARRIER, TRACKING), ("other", "123")).startswith(f"Etsy holds dhl {TRACKING}, other 123 instead")
    assert shipped((CARRIER, TRACKING), status="Paid") == "at Etsy it is Paid"
    assert "it is printed" in shipped((CARRIER, TRACKING), production_status="printed")
    with SimulatedEtsy("keystring", "secret") as etsy:

        def once(second: Mapping[str, object]) -> str:
            return missed(Check.ONCE, lambda checks: etsy_judges.judge_once(checks, etsy, {"etsy": told}, second))

        assert once({"etsy": told}) == "Robin Example got 0 mails; Etsy was told 0 times"
        etsy.shipments.append(notice)
        etsy.requests.append(call)
        assert once({"etsy": told}) == ""
        assert once({}) == "the second time the app answered something else"
        etsy.shipments.append(notice)
        etsy.requests.append(call)
        assert once({"etsy": told}) == "Robin Example got 2 mails; Etsy was told 2 times"


def test_prints_on_the_wrong_printer_or_at_the_same_time_are_missed(tmp_path: Path) -> None:
    def plan(prints: list[dict[str, object]], unmapped: int = 0) -> str:
        return missed(Check.PLAN, lambda checks: etsy_judges.judge_plan(checks, stage.posts, prints, unmapped))

    def due(number: int, printer_id: int, title: str, start: str | None) -> dict[str, object]:
        facts = {"created_at": "2026-11-21T09:00:00Z", "estimated_duration_minutes": 20, "status": "queued"}
        names = {"job_name": f"Order #7 - {title}", "printer_id": printer_id, "scheduled_start": start}
        return {"id": number, "priority": 11 - number, **facts, **names}

    with Stage(Scene(tmp_path / "demo", free_port()), threading.Event()) as stage:
        for number, post in enumerate(stage.posts, 1):
            post.printer_id = number
        later = "2026-11-21T09:35:00Z"
        vases = [due(1, 1, VASE.title, None), due(2, 1, VASE.title, later)]
        clips = [due(3, 2, CLIPS.title, None), due(4, 2, CLIPS.title, later)]
        assert plan(vases + clips) == ""
        assert plan(vases + clips, unmapped=1) == "1 lines wait for a mapping"
        assert "3 prints instead of 4" in plan([*vases, clips[0]])
        assert plan([*vases, clips[0], due(4, 1, CLIPS.title, later)]).startswith("Left has not just Spiral vase")
        assert (
            plan([*vases, clips[0], due(4, 2, CLIPS.title, "2026-11-21T09:34:00Z")]) == "print 3 and the next overlap"
        )


def test_a_login_to_another_account_and_papers_without_the_order_are_missed() -> None:
    with SimulatedEtsy("keystring", "secret") as etsy:
        shops = [{"etsy_shop_id": "12345678", "name": "PrintedThings"}]
        token = SeenRequest("POST", "/v3/public/oauth/token", {}, {}, b"grant_type=authorization_code&code_verifier=x")

        def login(second_id: int) -> str:
            first, second = {"id": 1, "shops": shops}, {"id": second_id, "shops": shops}
            return missed(Check.LOGIN, lambda checks: etsy_judges.judge_login(checks, etsy, first, second))

        assert login(1) == "Etsy gave tokens for 0 codes instead of 2"
        etsy.requests.extend([token, token])
        assert login(1) == ""
        assert login(2) == "signing in with Etsy opened account 2 instead of 1"
    slip = f"Robin Example {RECEIPT_ID} {' '.join(line.title for line in LINES)}"

    def papers(slip: str, tickets: int) -> str:
        page = '<section class="ticket">' * tickets
        return missed(Check.PAPERS, lambda checks: etsy_judges.judge_papers(checks, slip, page, [{}]))

    assert papers(slip, 1) == ""
    assert papers(slip.replace("Spiral", ""), 1) == "“Spiral vase” is not on the packing slip"
    assert papers(slip + "<script>", 2) == "2 job tickets for 1 prints; there is a script in them"


def test_advice_without_the_weather_is_missed() -> None:
    def weather(**changes: object) -> str:
        ams = [{"material_type": each, "humidity_source": "ams"} for each in ("PLA", "PETG") * 2]
        outside = {"material_type": "PA", "humidity_source": "outdoor_estimate"}
        materials = [{**each, "action": "fine", "advice": ["Dry enough."]} for each in (outside, *ams)]
        outdoor = {"temperature_c": 5.0, "humidity_percent": 85}
        advice = {"outdoor": outdoor, "materials": materials, "missing": [], **changes}
        return missed(Check.WEATHER, lambda checks: judges.judge_weather(checks, simulated, advice))

    with SimulatedWeather(WEATHER_KEY) as simulated:
        assert weather() == ""
        assert weather(outdoor=None, missing=["No key."]) == "the weather came as (None, None); missing: No key."
        assert weather(missing=[f"appid={WEATHER_KEY} is refused"]) == "the key stands in the answer"
        assert weather(materials=[]) == "the spools are judged by nothing"


def test_a_secret_in_the_log_is_missed(tmp_path: Path) -> None:
    with Stage(Scene(tmp_path / "demo", free_port()), threading.Event()) as stage:
        for post in stage.posts:
            post.webhook_secret = OTHER_SECRET

        def secrets(log: str) -> str:
            stage.log_path.write_text(log)
            return missed(Check.SECRETS, lambda checks: judges.judge_secrets(checks, stage, "eyJ-token"))

        assert secrets("GET /data/2.5/weather?appid=[hidden]") == ""
        assert secrets("") == "there is no log"
        assert secrets(f"GET /data/2.5/weather?appid={WEATHER_KEY}") == "the weather's key is in it"
        assert secrets("Bearer eyJ-token 61204873") == "the seller's token is in it; the access code of Left is in it"
