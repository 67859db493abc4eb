"""Judges each thing the demo promises by what was seen of it: through the API, and in the simulators' own records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from typing import Any

from simulator.demo_checks import Check, CheckList
from simulator.demo_goods import FILAMENTS, OUTSIDE, SPOOL_GRAMS
from simulator.demo_seller import EMAIL, PASSWORD
from simulator.demo_stage import SHARED_SECRET, WEATHER_KEY, Post, Stage, shown_path
from simulator.demo_watch import Lane, Sighting, subject_of
from simulator.weather import SimulatedWeather

WALK = ["queued", "scheduled", "started", "completed"]
# The API rounds grams to one decimal.
GRAMS_TOLERANCE = 0.05


def judge_printers(checks: CheckList, posts: Sequence[Post]) -> None:
    """Called when the API says that each is connected: here the printers themselves say whom they let in."""
    faults, evidence = [], []
    for post in posts:
        if not any(each.verdict == "accepted" for each in post.printer.connections):
            faults.append(f"{post.name} let nobody in")
        evidence.append(f"{post.name} ({post.model}, port {post.printer.mqtt_port}, CN {post.printer.serial})")
    checks.settle(Check.PRINTERS, faults, f"{' and '.join(evidence)} let the app in by their access codes")


def judge_weather(checks: CheckList, weather: SimulatedWeather, advice: Mapping[str, Any]) -> None:
    """Five spools: four in an AMS that reports, and one outside of it, for which the weather counts."""
    faults = []
    outdoor = advice["outdoor"] or {}
    told = (outdoor.get("temperature_c"), outdoor.get("humidity_percent"))
    if told != (weather.temperature_c, weather.humidity_percent):
        faults.append(f"the weather came as {told}; missing: {' '.join(advice['missing']) or 'nothing'}")
    sources = [(each["material_type"], each["humidity_source"]) for each in advice["materials"]]
    due = [*[(material, "ams") for material, _ in FILAMENTS] * 2, (OUTSIDE[0], "outdoor_estimate")]
    if sorted(sources) != sorted(due):
        told_by = ", ".join(f"{what}: {source}" for what, source in sources)
        faults.append(f"the spools are judged by {told_by or 'nothing'}")
    if any(not each["advice"] for each in advice["materials"]):
        faults.append("not each spool has its advice")
    if any(key in json.dumps(advice) for key in (WEATHER_KEY, "appid")):
        faults.append("the key stands in the answer")
    paths = ", ".join(dict.fromkeys(each.path for each in weather.requests))
    counts = Counter(each["action"].replace("_", " ") for each in advice["materials"])
    words = ", ".join(f"{count} {action}" for action, count in counts.items())
    checks.settle(Check.WEATHER, faults, f"{words}; {len(weather.requests)} calls to {weather.base_url}: {paths}")


def judge_uploads(checks: CheckList, lanes: Sequence[Lane], due: Mapping[int, str]) -> None:
    """`due`: the SHA-256, by print, of what the seller uploaded to the app. Only FTPS writes to a printer's storage."""
    faults, evidence = [], []
    for lane in lanes:
        for print_id in lane.print_ids:
            seen = lane.sightings.get(print_id, Sighting())
            if seen.stored_sha256 != due[print_id]:
                faults.append(f"{lane.post.name} never held the file of print {print_id}")
            evidence.append(f"{seen.stored_name} on {lane.post.name}")
    checks.settle(Check.UPLOAD, faults, f"{', '.join(evidence)}: each with the SHA-256 of what the seller had uploaded")


def judge_starts(checks: CheckList, lanes: Sequence[Lane]) -> None:
    faults, evidence = [], []
    for lane in lanes:
        told = lane.post.printer.starts
        accepted = [each for each in told if each.verdict == "accepted"]
        submissions = {each.subtask_id for each in accepted}
        if not len(told) == len(accepted) == len(submissions) == len(lane.print_ids):
            due = len(lane.print_ids)
            faults.append(f"{lane.post.name} was told {len(told)} and accepted {len(accepted)}, for {due} prints")
        evidence.append(
            f"{lane.post.name} was told {len(told)} and accepted {len(accepted)}: {', '.join(sorted(submissions))}"
        )
    checks.settle(Check.START, faults, "; ".join(evidence))


def judge_reports(checks: CheckList, lanes: Sequence[Lane]) -> None:
    faults, evidence = [], []
    for lane in lanes:
        for print_id in lane.print_ids:
            seen = lane.sightings.get(print_id, Sighting())
            if seen.faults:
                faults.append(f"print {print_id}: {', '.join(seen.faults)}")
                continue
            evidence.append(
                f"print {print_id} from {seen.coldest:.0f} towards {seen.target:.0f} °C, "
                f"layers {min(seen.layers)}–{max(seen.layers)} of {seen.total_layers}"
            )
    checks.settle(Check.REPORT, faults, f"{'; '.join(evidence)}; then finished")


def judge_moves(checks: CheckList, lanes: Sequence[Lane], events: Mapping[int, Sequence[Mapping[str, Any]]]) -> None:
    """By each print's own history."""
    faults = []
    for lane in lanes:
        for print_id in lane.print_ids:
            walked = [
                each["to_status"] for each in events[print_id] if each["to_status"] not in (None, each["from_status"])
            ]
            if walked != WALK:
                faults.append(f"print {print_id} went {' → '.join(walked)}")
    words = f"prints {', '.join(str(print_id) for print_id in sorted(events))}, each by its own history of events"
    checks.settle(Check.MOVES, faults, words)


def judge_filament(
    checks: CheckList,
    lanes: Sequence[Lane],
    prints: Mapping[int, Mapping[str, Any]],
    spools: Mapping[str, Sequence[Mapping[str, Any]]],
) -> None:
    """The ledger against what the prints should have used: by printer and spool, to the gram."""
    faults, evidence = [], []
    for lane in lanes:
        for spool in spools[lane.post.name]:
            of_spool = [prints[i] for i in lane.print_ids if prints[i]["material_type"] == spool["material_type"]]
            due = sum(each["estimated_grams"] for each in of_spool)
            place = f"{lane.post.name} slot {spool['slot']} ({spool['material_type']})"
            if abs(SPOOL_GRAMS - spool["remaining_grams"] - due) > GRAMS_TOLERANCE:
                faults.append(f"{place} has {spool['remaining_grams']} g instead of {SPOOL_GRAMS - due:.1f} g")
            elif due:
                evidence.append(
                    f"{place} {SPOOL_GRAMS:.0f} → {spool['remaining_grams']} g, {len(of_spool)} prints, "
                    f"{spool['used_grams']} g, a cost of {spool['cost_used']:.2f}"
                )
    checks.settle(Check.FILAMENT, faults, "; ".join(evidence))


def judge_order(checks: CheckList, order: Mapping[str, Any], seen: Sequence[str]) -> None:
    status = order["production_status"]
    faults = [] if status == seen[-1] == "printed" else [f"it is {status}"]
    checks.settle(Check.ORDER, faults, f"order {order['id']} was seen {' → '.join(seen)}")


def judge_mails(checks: CheckList, lanes: Sequence[Lane], mails: Sequence[EmailMessage]) -> None:
    """One for each start and each end of a print."""
    due = sum(len(lane.print_ids) for lane in lanes)
    subjects = [subject_of(mail) for mail in mails if mail["To"] == EMAIL]
    ended = [subject for subject in subjects if subject.startswith("Finished:")]
    faults = []
    if (len(subjects), len(ended)) != (2 * due, due):
        faults = [f"{len(subjects)} of {2 * due} came, {len(ended)} of {due} of a finished print"]
    checks.settle(Check.MAIL, faults, f"{len(subjects)} to {EMAIL}, the last one “{''.join(ended[-1:])}”")


def judge_webhooks(checks: CheckList, lanes: Sequence[Lane]) -> None:
    """One for each start and each end of a print, at its printer's receiver, which verifies it."""
    faults, evidence = [], []
    for lane in lanes:
        received = lane.post.receiver.received
        kinds = [each.json.get("type") if isinstance(each.json, dict) else None for each in received]
        due = ["print.started", "print.completed"] * len(lane.print_ids)
        if unverified := sum(not each.verified for each in received):
            faults.append(f"{unverified} of {len(received)} signatures of {lane.post.name} do not hold for its secret")
        if sorted(map(str, kinds)) != sorted(due):
            faults.append(f"{lane.post.name}'s receiver got {len(received)} of {len(due)}")
        evidence.append(f"{lane.post.name} {len(received)} ({' and '.join(dict.fromkeys(map(str, kinds)))})")
    checks.settle(Check.WEBHOOK, faults, f"{', '.join(evidence)}; every signature holds for its printer's secret")


def judge_secrets(checks: CheckList, stage: Stage, token: str) -> None:
    """By the app's whole log so far. Whatever was asked with the keys is over by now."""
    secrets = {
        "the weather's key": WEATHER_KEY,
        "Etsy's shared secret": SHARED_SECRET,
        "the seller's password": PASSWORD,
        "the seller's token": token,
        **{f"the access code of {post.name}": post.printer.access_code for post in stage.posts},
        **{f"the webhook secret of {post.name}": post.webhook_secret for post in stage.posts},
    }
    log = stage.log_path.read_text(errors="replace")
    faults = [f"{name} is in it" for name, secret in secrets.items() if secret in log]
    if not log:
        faults.append("there is no log")
    words = (
        f"{len(log.splitlines())} lines in {shown_path(stage.log_path)}: no key of Etsy's or the weather's, "
        "no password, token, access code or webhook secret"
    )
    checks.settle(Check.SECRETS, faults, words)
