"""The demo's walk: one Etsy order becomes a finished print, with a judgement on each thing that has to happen."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from simulator.demo_checks import Check, CheckList
from simulator.demo_screen import Screen
from simulator.demo_seller import EMAIL, Seller
from simulator.demo_stage import DemoFailed, Post, Stage, shown_path
from simulator.demo_watch import Lane, Sighting, Watch
from simulator.etsy_receipts import ReceiptLine
from simulator.sliced_file import Plate, make_sliced_file

RECEIPT_ID, NEXT_RECEIPT_ID = 3_100_000_007, 3_100_000_008
CHAIN_BUFFER = timedelta(minutes=15)
SPOOL_GRAMS = 1000.0

VASE, CLIPS = "Spiral vase", "Cable clips, set of 4"
VASE_PLATE = Plate(minutes=32, layers=60, filaments=(("PLA", "#FFFFFF", 18.3, 6.1),), objects=(VASE,))
CLIPS_PLATE = Plate(minutes=28, layers=24, filaments=(("PETG", "#161616", 9.6, 3.2),), objects=("Clip",) * 8)
VASE_LINE = ReceiptLine(VASE, "VASE-01", 2, Decimal("24.00"), {"Color": "White"})
CLIPS_LINE = ReceiptLine(CLIPS, "CLIP-04", 4, Decimal("6.50"))
PATTERN_LINE = ReceiptLine("Vase pattern (PDF)", "PDF-01", 1, Decimal("3.00"), is_digital=True)
WALK = ["queued", "scheduled", "started", "completed"]


class Walk:
    """One play through. `play()` may be called once; what was seen is in the check list, whatever happens."""

    def __init__(self, stage: Stage, screen: Screen, checks: CheckList) -> None:
        self._stage, self._screen, self._checks = stage, screen, checks
        self._seller = Seller(stage)
        self._order_id = 0
        self._spools: dict[int, dict[str, Any]] = {}
        self._sha256: dict[int, str] = {}

    def play(self) -> None:
        """Raises DemoFailed, Interrupted."""
        self._set_the_stage()
        self._set_up_shop()
        self._add_printers()
        self._import_order()
        lanes = self._plan()
        self._screen.open_phase("The printers at work, in fast time")
        Watch(self._stage, self._seller, self._screen, lanes, self._order_id).run()
        self._judge_printing(lanes)
        self._judge_messages(lanes)

    def add_another_order(self) -> None:
        """A second order waits at Etsy for whoever tries the API by hand."""
        self._stage.receive_order(NEXT_RECEIPT_ID, [VASE_LINE], "Kim Example")

    def _set_the_stage(self) -> None:
        screen, stage = self._screen, self._stage
        screen.open_phase("The stage: everything on this machine")
        for post in stage.posts:
            printer = post.printer
            screen.tell(
                f"{post.name}, a simulated {post.model}: MQTT/TLS on port {printer.mqtt_port}, FTPS on "
                f"{printer.ftps_port}, certificate CN = {printer.serial}"
            )
        screen.tell(f"A simulated Etsy at {stage.etsy.base_url}")
        screen.tell(f"A mail server on port {stage.mail.port}, and a receiver of webhooks for each printer")
        stage.start_app()
        screen.tell(
            f"The app with its worker at {stage.base_url}, its database migrated in {shown_path(stage.scene.folder)}",
            "FLASK_ENV=development AUTO_DB_CREATE=1 python app.py",
        )

    def _set_up_shop(self) -> None:
        seller, screen = self._seller, self._screen
        screen.open_phase("A seller sets up shop")
        user = seller.register()
        screen.tell(f"Account {user['email']}", "POST /api/auth/register")
        shops = seller.connect_etsy()
        screen.tell(
            f"Etsy shop {shops[0]['name']} connected: login, consent, redirect", "GET /api/auth/etsy/login, /callback"
        )
        vase = make_sliced_file(None, [VASE_PLATE], model_id="C12")
        clips = make_sliced_file(None, [CLIPS_PLATE], model_id="BL-P001")
        for line, name, content, plate, per_plate in (
            (VASE_LINE, "vase_p1s.gcode.3mf", vase, VASE_PLATE, 1),
            (CLIPS_LINE, "clips_x1c.gcode.3mf", clips, CLIPS_PLATE, 2),
        ):
            self._add_product(line, name, content, plate, per_plate)

    def _add_product(self, line: ReceiptLine, file_name: str, content: bytes, plate: Plate, per_plate: int) -> None:
        file = self._seller.upload(file_name, content)
        self._sha256[file["id"]] = hashlib.sha256(content).hexdigest()
        ((_, (material, color, grams, _)),) = plate.used
        self._seller.post(
            "/api/product-profiles",
            {
                "product_name": line.title,
                "sku": line.sku,
                "print_file_id": file["id"],
                "units_per_plate": per_plate,
                "print_time_minutes": round(plate.minutes),
                "filament_grams": grams,
                "preferred_material": material,
                "preferred_color": color,
            },
        )
        self._screen.tell(
            f"{line.sku} {line.title}: {file_name}, {per_plate} on a plate, {plate.minutes:.0f} min, {grams} g {material}",
            "POST /api/print-files, /api/product-profiles",
        )

    def _add_printers(self) -> None:
        seller, screen = self._seller, self._screen
        screen.open_phase("Two printers join the farm")
        for post in self._stage.posts:
            printer = post.printer
            added = seller.post(
                "/api/printers",
                {
                    "name": post.name,
                    "model": post.model,
                    "connection_type": "bambu_lan",
                    "host": printer.host,
                    "port": printer.mqtt_port,
                    "ftps_port": printer.ftps_port,
                    "serial_number": printer.serial,
                    "access_code": printer.access_code,
                },
            )
            post.printer_id, post.connection_id = added["id"], added["connection_id"]
            screen.tell(f"{post.name} ({post.model}) with its address, serial number and access code", "POST /api/printers")
            for slot, (material, color) in enumerate((("PLA", "#FFFFFF"), ("PETG", "#161616"))):
                seller.post(
                    f"/api/bambu/materials/{post.printer_id}",
                    {
                        "slot": slot,
                        "material_type": material,
                        "color": color,
                        "weight_grams": SPOOL_GRAMS,
                        "cost_per_kg": 24.99,
                        "vendor": "Bambu Lab",
                    },
                )
            screen.tell(f"{post.name}: a kilogram of PLA in slot 0, of PETG in slot 1", f"POST /api/bambu/materials/{post.printer_id}")
            preferences = seller.put(f"/api/bambu/notifications/{post.printer_id}", {"webhook_url": post.receiver.url})
            post.receiver.trust(self._stage.scene.receivers_trust or preferences["webhook_secret"])
            screen.tell(
                f"{post.name}: e-mails, and webhooks signed with a secret shown once",
                f"PUT /api/bambu/notifications/{post.printer_id}",
            )
        for post in self._stage.posts:
            self._greet(post)
        self._judge_connections()

    def _greet(self, post: Post) -> None:
        path = f"/api/printer-connections/{post.connection_id}/status"
        seller = self._seller
        status: dict[str, Any] = {}

        def is_known() -> bool:
            status.update(seller.get(path))
            return status["connection_status"] == "connected" and status["state"] != "unknown"

        if not self._stage.wait_until(is_known):
            why = status["reason"] or status["connection_status"]
            raise DemoFailed(f"{post.name} cannot be heard through the API: {why}. {self._stage.log_hint()}")
        self._screen.tell(
            f"{post.name} is {status['connection_status']}: {status['state']}, nozzle {status['nozzle_temp']:.0f} °C, "
            f"{len(status['materials'])} spools",
            f"GET {path}",
        )
        # Nobody can know what lies on a plate that was never seen: a person has to say that it is empty.
        seller.post(f"/api/printers/{post.printer_id}/plate-cleared", {"print_id": None})
        self._screen.tell(
            f"A person looks at {post.name}: its plate is empty", f"POST /api/printers/{post.printer_id}/plate-cleared"
        )

    def _judge_connections(self) -> None:
        faults, evidence = [], []
        for post in self._stage.posts:
            accepted = [each for each in post.printer.connections if each.verdict == "accepted"]
            if not accepted:
                faults.append(f"{post.name} let nobody in")
            evidence.append(f"{post.name} ({post.model}) on port {post.printer.mqtt_port}, CN {post.printer.serial}")
        self._checks.settle(Check.PRINTERS, faults, "; ".join(evidence))

    def _import_order(self) -> None:
        stage, seller, screen = self._stage, self._seller, self._screen
        screen.open_phase("An order comes in at Etsy")
        receipt = stage.receive_order(RECEIPT_ID, [VASE_LINE, CLIPS_LINE, PATTERN_LINE], "Robin Example")
        screen.tell("Robin buys 2 white vases, 4 sets of cable clips and a PDF")
        synced = seller.post("/api/orders/sync")
        screen.tell(f"{synced['message']}", "POST /api/orders/sync")
        found = seller.get("/api/orders")["orders"]
        faults = []
        asked = [each for each in stage.etsy.requests if each.method == "GET" and each.path.endswith("/receipts")]
        if not asked:
            faults.append("the simulated Etsy was never asked for receipts")
        if [order["etsy_order_id"] for order in found] != [str(RECEIPT_ID)]:
            faults.append(f"the API lists {len(found)} orders instead of receipt {RECEIPT_ID}")
            self._checks.settle(Check.RECEIPT, faults, "")
            return
        order = found[0]
        self._order_id = order["id"]
        bought = [(line["sku"], line["quantity"], line["options"]) for line in order["items"]]
        sold = [(line.sku, line.quantity, dict(line.variations)) for line in (VASE_LINE, CLIPS_LINE, PATTERN_LINE)]
        if bought != sold:
            faults.append(f"the lines differ: {bought}")
        total = Decimal(receipt["grandtotal"]["amount"]) / receipt["grandtotal"]["divisor"]
        if Decimal(str(order["total_amount"])) != total or order["ship_by"] is None:
            faults.append(f"total {order['total_amount']}, ship by {order['ship_by']}")
        screen.tell(
            f"Order {order['id']}: {order['buyer_name']}, {order['total_amount']:.2f} {order['currency']}, "
            f"ship by {_minute(order['ship_by'])}, {order['production_status']}",
            f"GET /api/orders/{order['id']}",
        )
        for line in order["items"]:
            options = ", ".join(f"{name}: {value}" for name, value in line["options"].items())
            kind = "digital" if line["is_digital"] else f"profile {line['profile_id']}"
            screen.tell(f"  {line['quantity']} × {line['title']}{f' ({options})' if options else ''}, {kind}")
        self._checks.settle(
            Check.RECEIPT,
            faults,
            f"receipt {RECEIPT_ID} by {len(asked)} calls to {stage.etsy.base_url}: {len(bought)} lines, "
            f"{order['total_amount']:.2f} {order['currency']}, ship by {_minute(order['ship_by'])}",
        )

    def _plan(self) -> list[Lane]:
        seller, screen = self._seller, self._screen
        left, right = self._stage.posts
        screen.open_phase("Its prints are planned")
        path = f"/api/orders/{self._order_id}/schedule-prints"
        answer = seller.post(path, {"printer_id": left.printer_id})
        screen.tell(f"{answer['message']}; {len(answer['skipped'])} line skipped (digital: nothing to print)", f"POST {path}")
        prints = answer["prints"]
        for each in prints:
            begin = f"not before {_minute(each['scheduled_start'])}" if each["scheduled_start"] else "at once"
            screen.tell(
                f"  print {each['id']}: {each['job_name']}, {each['estimated_duration_minutes']} min, "
                f"priority {each['priority']}, {begin}"
            )
        self._judge_chain(prints, answer["skipped"])
        for_right = [each for each in prints if CLIPS in each["job_name"]]
        for_left = [each for each in prints if each not in for_right]
        for each in for_right:
            seller.put(f"/api/bambu/scheduled-prints/{each['id']}", {"printer_id": right.printer_id, "scheduled_start": None})
        screen.tell(
            f"The clips are sliced for the {right.model}: they move to {right.name}",
            f"PUT /api/bambu/scheduled-prints/<id> {{\"printer_id\": {right.printer_id}, \"scheduled_start\": null}}",
        )
        for each in for_left[1:]:
            seller.put(f"/api/bambu/scheduled-prints/{each['id']}", {"scheduled_start": None})
        screen.tell(
            "The chain's hours are real hours and the demo's printers are faster: the seller wants the prints now",
            'PUT /api/bambu/scheduled-prints/<id> {"scheduled_start": null}',
        )
        for each in prints:
            seller.post(f"/api/bambu/scheduled-prints/{each['id']}/start")
        screen.tell(
            f"{len(prints)} prints released: each starts when its printer and its plate are free",
            "POST /api/bambu/scheduled-prints/<id>/start",
        )
        return [Lane(left, [each["id"] for each in for_left]), Lane(right, [each["id"] for each in for_right])]

    def _judge_chain(self, prints: Sequence[dict[str, Any]], skipped: Sequence[dict[str, Any]]) -> None:
        faults = []
        if len(prints) != 4 or len(skipped) != 1:
            faults.append(f"{len(prints)} prints and {len(skipped)} skipped lines instead of 4 and 1")
        if [each["priority"] for each in prints] != [10, 9, 8, 7]:
            faults.append("the priorities do not fall from 10")
        if prints[0]["scheduled_start"] is not None or any(each["status"] != "queued" for each in prints):
            faults.append("the first does not start at once, or not all are queued")
        starts = [datetime.fromisoformat(each["scheduled_start"]) for each in prints[1:] if each["scheduled_start"]]
        for before, start, following in zip(prints[1:], starts, starts[1:], strict=False):
            if following - start != timedelta(minutes=before["estimated_duration_minutes"]) + CHAIN_BUFFER:
                faults.append(f"print {before['id']} and the next one are not chained")
        times = ", ".join(f"{start:%H:%M}" for start in starts)
        self._checks.settle(
            Check.CHAIN, faults, f"{len(prints)} prints, the first at once, the others not before {times} UTC; 1 digital line skipped"
        )

    def _judge_printing(self, lanes: Sequence[Lane]) -> None:
        prints = {each["id"]: each for each in self._seller.find_prints(self._order_id)}
        self._judge_machines(lanes, prints)
        self._judge_reports(lanes)
        faults: list[str] = []
        for lane in lanes:
            for print_id in lane.print_ids:
                events = self._seller.get(f"/api/bambu/scheduled-prints/{print_id}/events")
                walked = [each["to_status"] for each in events if each["to_status"] != each["from_status"]]
                if walked != WALK:
                    faults.append(lane.gave_up or f"print {print_id} went {' → '.join(map(str, walked))}")
        self._checks.settle(Check.MOVES, faults, f"the history of each of the {len(prints)} prints has these four moves")
        self._judge_filament(lanes, prints)
        order = self._seller.get(f"/api/orders/{self._order_id}")
        is_printed = order["production_status"] == "printed"
        faults = [] if is_printed else [f"it is {order['production_status']}", *_reasons(lanes)]
        self._checks.settle(Check.ORDER, faults, f"order {self._order_id}: new → queued → printing → printed")

    def _judge_machines(self, lanes: Sequence[Lane], prints: dict[int, dict[str, Any]]) -> None:
        """Upload and start by the printers' own records."""
        upload_faults: list[str] = []
        start_faults: list[str] = []
        uploads, starts = [], []
        for lane in lanes:
            name = lane.post.name
            for print_id in lane.print_ids:
                seen = lane.sightings.get(print_id, Sighting())
                if seen.stored_sha256 != self._sha256[prints[print_id]["print_file_id"]]:
                    upload_faults.append(lane.gave_up or f"{name} never held the file of print {print_id}")
                uploads.append(f"{name}: {seen.stored_name}")
            accepted = [each for each in lane.post.printer.starts if each.verdict == "accepted"]
            submissions = {each.subtask_id for each in accepted}
            if not len(lane.post.printer.starts) == len(accepted) == len(submissions) == len(lane.print_ids):
                count = f"{name} was told {len(lane.post.printer.starts)} starts for {len(lane.print_ids)} prints"
                start_faults += [count, *([lane.gave_up] if lane.gave_up else [])]
            starts.append(f"{name} accepted {len(accepted)}: {', '.join(each.url for each in accepted)}")
        self._checks.settle(Check.UPLOAD, upload_faults, f"{', '.join(uploads)}, each with the SHA-256 that was uploaded")
        self._checks.settle(Check.START, start_faults, "; ".join(starts))

    def _judge_reports(self, lanes: Sequence[Lane]) -> None:
        faults, evidence = [], []
        for lane in lanes:
            for print_id in lane.print_ids:
                seen = lane.sightings.get(print_id, Sighting())
                if seen.faults:
                    faults.append(lane.gave_up or f"print {print_id}: {', '.join(seen.faults)}")
                else:
                    evidence.append(
                        f"print {print_id}: {seen.coldest:.0f} → {seen.hottest:.0f} of {seen.target:.0f} °C, "
                        f"layers {min(seen.layers)}–{max(seen.layers)} of {seen.total_layers}"
                    )
        self._checks.settle(Check.REPORT, faults, f"{'; '.join(evidence)}; then finished")

    def _judge_filament(self, lanes: Sequence[Lane], prints: dict[int, dict[str, Any]]) -> None:
        faults, evidence = [], []
        for lane in lanes:
            spools = self._seller.get(f"/api/bambu/materials/{lane.post.printer_id}")
            for spool in spools:
                wanted = [prints[i] for i in lane.print_ids if prints[i]["material_type"] == spool["material_type"]]
                due = sum(each["estimated_grams"] for each in wanted)
                booked = SPOOL_GRAMS - spool["remaining_grams"]
                if abs(booked - due) > 0.05:
                    name = f"{lane.post.name} slot {spool['slot']} ({spool['material_type']})"
                    faults.append(f"{name}: {booked:.1f} g booked instead of {due:.1f} g")
                elif due:
                    evidence.append(
                        f"{lane.post.name} slot {spool['slot']} {spool['material_type']}: {SPOOL_GRAMS:.0f} → "
                        f"{spool['remaining_grams']:.1f} g ({len(wanted)} prints, {due:.1f} g, {spool['cost_used']:.2f})"
                    )
        self._checks.settle(Check.FILAMENT, faults, "; ".join(evidence))

    def _judge_messages(self, lanes: Sequence[Lane]) -> None:
        """A mail and a webhook for each start and each end; waited for, if there is something to wait for."""
        stage, screen = self._stage, self._screen
        count = sum(len(lane.print_ids) for lane in lanes)
        receivers = [lane.post.receiver for lane in lanes]
        mails = stage.mail.messages

        def have_come() -> bool:
            return len(mails) >= 2 * count and sum(len(each.received) for each in receivers) >= 2 * count

        if not _reasons(lanes):
            stage.wait_until(have_come)
        screen.open_phase("The messages")
        subjects = [str(mail["Subject"]) for mail in mails if mail["To"] == EMAIL]
        finished = [subject for subject in subjects if subject.startswith("Finished:")]
        faults = []
        if len(finished) != count or len(subjects) != 2 * count:
            faults = [f"{len(subjects)} of {2 * count} came, {len(finished)} of {count} on a finished print", *_reasons(lanes)]
        last = f"“{finished[-1]}”" if finished else "none"
        screen.tell(f"{len(subjects)} e-mails to {EMAIL}, the last: {last}")
        self._checks.settle(Check.MAIL, faults, f"{len(subjects)} to {EMAIL}, the last one: {last}")
        faults, kinds = [], []
        for lane in lanes:
            for each in lane.post.receiver.received:
                kinds.append(str((each.json or {}).get("type")))
                if not each.verified:
                    faults.append(f"{lane.post.name}'s receiver got a signature that does not hold for its secret")
        if sorted(kinds) != ["print.completed"] * count + ["print.started"] * count:
            faults += [f"{len(kinds)} of {2 * count} came", *_reasons(lanes)]
        words = f"{kinds.count('print.started')} print.started and {kinds.count('print.completed')} print.completed"
        screen.tell(f"Webhooks: {words}, {'every signature verified' if not faults else 'not as it should be'}")
        self._checks.settle(Check.WEBHOOK, faults, f"{words}, each verified by Standard Webhooks with its printer's secret")


def _reasons(lanes: Sequence[Lane]) -> list[str]:
    return [lane.gave_up for lane in lanes if lane.gave_up]


def _minute(moment: str) -> str:
    return f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M} UTC"
