"""The demo's walk: a seller sets up shop, an order comes in, is planned, printed and told of."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from simulator import demo_judges as judges
from simulator.demo_checks import CheckList
from simulator.demo_goods import (
    BUYER,
    CLIPS,
    COST_PER_KG,
    FILAMENTS,
    LINES,
    NEXT_BUYER,
    NEXT_RECEIPT_ID,
    PRODUCTS,
    RECEIPT_ID,
    SPOOL_GRAMS,
    VASE,
    Product,
)
from simulator.demo_screen import Screen
from simulator.demo_seller import EMAIL, Seller
from simulator.demo_stage import DemoFailed, Post, Stage, shown_path
from simulator.demo_watch import Lane, Watch, subject_of, title_of


class Walk:
    """One play through. `play()` may be called once; what was seen is in the check list, whatever happens."""

    def __init__(self, stage: Stage, screen: Screen, checks: CheckList) -> None:
        self._stage, self._screen, self._checks = stage, screen, checks
        self._seller = Seller(stage)
        self._sha256: dict[int, str] = {}

    def play(self) -> None:
        """Raises DemoFailed, Interrupted."""
        self._set_the_stage()
        self._set_up_shop()
        self._add_printers()
        order_id = self._import_order()
        lanes = self._plan(order_id)
        self._screen.open_phase("The printers at work, in fast time")
        watch = Watch(self._stage, self._seller, self._screen, lanes, order_id)
        watch.run()
        self._checks.reasons += [lane.gave_up for lane in lanes if lane.gave_up]
        self._read_the_messages(lanes)
        self._judge(lanes, order_id, watch.order_statuses)

    def add_another_order(self) -> None:
        """A second order waits at Etsy for whoever tries the API by hand."""
        self._stage.receive_order(NEXT_RECEIPT_ID, [VASE.line], NEXT_BUYER)

    def _set_the_stage(self) -> None:
        screen, stage = self._screen, self._stage
        screen.open_phase("The stage: everything on this machine")
        for post in stage.posts:
            printer = post.printer
            screen.tell(f"{post.name}, a simulated {post.model}, certificate CN = {printer.serial}")
            screen.tell(f"  MQTT over TLS on port {printer.mqtt_port}, FTPS on port {printer.ftps_port}")
        screen.tell(f"A simulated Etsy at {stage.etsy.base_url}")
        screen.tell(f"A mail server on port {stage.mail.port}, and a receiver of webhooks for each printer")
        stage.start_app()
        screen.tell(
            f"The app with its worker at {stage.base_url}", "FLASK_ENV=development AUTO_DB_CREATE=1 python app.py"
        )
        screen.tell(f"  its SQLite database migrated, in {shown_path(stage.scene.folder)}")

    def _set_up_shop(self) -> None:
        seller, screen = self._seller, self._screen
        screen.open_phase("A seller sets up shop")
        user = seller.register()
        screen.tell(f"Account {user['email']}", "POST /api/auth/register")
        shops = seller.connect_etsy()
        screen.tell(f"Etsy shop {shops[0]['name']}: login, consent, redirect", "GET /api/auth/etsy/login, …/callback")
        for product in PRODUCTS:
            self._add_product(product)

    def _add_product(self, product: Product) -> None:
        content = product.slice()
        file = self._seller.upload(product.file_name, content)
        self._sha256[file["id"]] = hashlib.sha256(content).hexdigest()
        material, color, grams, _ = product.filament
        profile = {
            "product_name": product.title,
            "sku": product.line.sku,
            "print_file_id": file["id"],
            "units_per_plate": product.units_per_plate,
            "print_time_minutes": round(product.plate.minutes),
            "filament_grams": grams,
            "preferred_material": material,
            "preferred_color": color,
        }
        self._seller.post("/api/product-profiles", profile)
        self._screen.tell(f"{product.title}: {product.file_name}", "POST /api/print-files, /api/product-profiles")
        self._screen.tell(
            f"  {product.units_per_plate} on a plate, {product.plate.minutes:.0f} min, {grams} g of {material}"
        )

    def _add_printers(self) -> None:
        self._screen.open_phase("Two printers join the farm")
        for post in self._stage.posts:
            self._add_printer(post)
        for post in self._stage.posts:
            self._greet(post)
        judges.judge_printers(self._checks, self._stage.posts)

    def _add_printer(self, post: Post) -> None:
        seller, screen, printer = self._seller, self._screen, post.printer
        fields = {
            "name": post.name,
            "model": post.model,
            "connection_type": "bambu_lan",
            "host": printer.host,
            "port": printer.mqtt_port,
            "ftps_port": printer.ftps_port,
            "serial_number": printer.serial,
            "access_code": printer.access_code,
        }
        added = seller.post("/api/printers", fields)
        post.printer_id, post.connection_id = added["id"], added["connection_id"]
        screen.tell(f"{post.name} ({post.model}): address, serial number, access code", "POST /api/printers")
        path = f"/api/bambu/materials/{post.printer_id}"
        for slot, (material, color) in enumerate(FILAMENTS):
            spool = {"slot": slot, "material_type": material, "color": color, "weight_grams": SPOOL_GRAMS}
            seller.post(path, spool | {"cost_per_kg": COST_PER_KG, "vendor": "Bambu Lab"})
        screen.tell("  a kilogram of PLA in slot 0, one of PETG in slot 1", f"POST {path}")
        path = f"/api/bambu/notifications/{post.printer_id}"
        preferences = seller.put(path, {"webhook_url": post.receiver.url})
        post.receiver.trust(self._stage.scene.receivers_trust or preferences["webhook_secret"])
        screen.tell("  e-mails, and webhooks signed with a secret shown once", f"PUT {path}")

    def _greet(self, post: Post) -> None:
        """Waits for the printer's first report, then says what only a person can know: what is on the plate."""
        path = f"/api/printer-connections/{post.connection_id}/status"
        status: dict[str, Any] = {}

        def is_known() -> bool:
            status.update(self._seller.get(path))
            return (status["connection_status"], status["state"]) == ("connected", "idle")

        if not self._stage.wait_until(is_known):
            why = status["reason"] or status["connection_status"]
            raise DemoFailed(
                f"{post.name} cannot be heard through the API: {why.rstrip('.')}. {self._stage.log_hint()}"
            )
        self._screen.tell(
            f"{post.name} is {status['connection_status']}: {status['state']}, {status['nozzle_temp']:.0f} °C, "
            f"{len(status['materials'])} spools",
            f"GET {path}",
        )
        path = f"/api/printers/{post.printer_id}/plate-cleared"
        self._seller.post(path, {"print_id": None})
        self._screen.tell(f"  a person has looked: the plate of {post.name} is empty", f"POST {path}")

    def _import_order(self) -> int:
        stage, seller, screen = self._stage, self._seller, self._screen
        screen.open_phase("An order comes in at Etsy")
        receipt = stage.receive_order(RECEIPT_ID, list(LINES), BUYER)
        screen.tell(f"{BUYER} buys {', '.join(f'{line.quantity} × {line.title}' for line in LINES)}")
        synced = seller.post("/api/orders/sync")
        screen.tell(synced["message"], "POST /api/orders/sync")
        orders = seller.get("/api/orders")["orders"]
        judges.judge_receipt(self._checks, stage.etsy, receipt, orders)
        if not orders:
            raise DemoFailed(f"The order did not come in. {stage.log_hint()}")
        order = orders[0]
        screen.tell(
            f"Order {order['id']}: {order['buyer_name']}, {order['total_amount']:.2f} {order['currency']}, "
            f"ship by {datetime.fromisoformat(order['ship_by']):%d %b %Y}, {order['production_status']}",
            f"GET /api/orders/{order['id']}",
        )
        for line in order["items"]:
            options = ", ".join(f"{name}: {value}" for name, value in line["options"].items())
            what = "digital" if line["is_digital"] else f"made by product profile {line['profile_id']}"
            screen.tell(f"  {line['quantity']} × {line['title']}{f' ({options})' if options else ''}, {what}")
        return int(order["id"])

    def _plan(self, order_id: int) -> list[Lane]:
        seller, screen = self._seller, self._screen
        left, right = self._stage.posts
        screen.open_phase("Its prints are planned")
        path = f"/api/orders/{order_id}/schedule-prints"
        answer = seller.post(path, {"printer_id": left.printer_id})
        prints = answer["prints"]
        judges.judge_chain(self._checks, prints, answer["skipped"])
        screen.tell(f"{answer['message']}, skipped {len(answer['skipped'])} digital line", f"POST {path}")
        for each in prints:
            start = each["scheduled_start"]
            begin = f"not before {datetime.fromisoformat(start):%H:%M} UTC" if start else "at once"
            screen.tell(f"  print {each['id']}: {title_of(each)}, {each['estimated_duration_minutes']} min, {begin}")
        for_right = [each["id"] for each in prints if title_of(each) == CLIPS.title]
        for_left = [each["id"] for each in prints if each["id"] not in for_right]
        for print_id in for_right:
            seller.put(f"/api/bambu/scheduled-prints/{print_id}", {"printer_id": right.printer_id})
        screen.tell(
            f"The clips are sliced for the {right.model}: they move to {right.name}",
            f'PUT /api/bambu/scheduled-prints/<id> {{"printer_id": {right.printer_id}}}',
        )
        screen.tell("“Not before” is meant in real hours, and these printers are faster: the seller wants them now")
        for each in prints[1:]:
            seller.put(f"/api/bambu/scheduled-prints/{each['id']}", {"scheduled_start": None})
        screen.tell(
            f"  the hour is taken off {len(prints) - 1} prints",
            'PUT /api/bambu/scheduled-prints/<id> {"scheduled_start": null}',
        )
        for each in prints:
            seller.post(f"/api/bambu/scheduled-prints/{each['id']}/start")
        screen.tell(
            f"{len(prints)} prints released: each starts when its printer and the plate are free",
            "POST /api/bambu/scheduled-prints/<id>/start",
        )
        return [Lane(left, for_left), Lane(right, for_right)]

    def _read_the_messages(self, lanes: list[Lane]) -> None:
        """A mail and a webhook for each start and each end; waited for, unless a print gave up."""
        stage, screen = self._stage, self._screen
        due = 2 * sum(len(lane.print_ids) for lane in lanes)
        mails = stage.mail.messages

        def have_come() -> bool:
            return min(len(mails), sum(len(post.receiver.received) for post in stage.posts)) >= due

        if not any(lane.gave_up for lane in lanes):
            stage.wait_until(have_come)
        screen.open_phase("What the seller was told")
        screen.tell(f"{len(mails)} e-mails to {EMAIL}")
        for mail in mails[-1:]:
            screen.tell(f"  the last one: {subject_of(mail)}")
        for post in stage.posts:
            received = post.receiver.received
            verified = sum(each.verified for each in received)
            screen.tell(f"{len(received)} webhooks of {post.name}, the signatures of {verified} hold")

    def _judge(self, lanes: list[Lane], order_id: int, order_statuses: list[str]) -> None:
        seller, checks = self._seller, self._checks
        prints = {each["id"]: each for each in seller.find_prints(order_id)}
        events = {
            print_id: seller.get(f"/api/bambu/scheduled-prints/{print_id}/events")
            for lane in lanes
            for print_id in lane.print_ids
        }
        spools = {
            lane.post.name: seller.get(f"/api/bambu/materials/{lane.post.printer_id}", include="removed")
            for lane in lanes
        }
        due_files = {print_id: self._sha256[each["print_file_id"]] for print_id, each in prints.items()}
        judges.judge_uploads(checks, lanes, due_files)
        judges.judge_starts(checks, lanes)
        judges.judge_reports(checks, lanes)
        judges.judge_moves(checks, lanes, events)
        judges.judge_filament(checks, lanes, prints, spools)
        judges.judge_order(checks, seller.get(f"/api/orders/{order_id}"), order_statuses)
        judges.judge_mails(checks, lanes, self._stage.mail.messages)
        judges.judge_webhooks(checks, lanes)
