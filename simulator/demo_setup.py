"""The demo's first acts: the stage is built, a seller sets up shop, two printers join, their filament is looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from simulator import demo_judges as judges
from simulator.demo_goods import COST_PER_KG, FILAMENTS, OUTSIDE, PLACE, PRODUCTS, ROOM_C, SPOOL_GRAMS, Product
from simulator.demo_seller import Seller
from simulator.demo_show import Show
from simulator.demo_stage import DemoFailed, Post, shown_path


def build_stage(show: Show) -> None:
    screen, stage = show.screen, show.stage
    screen.open_phase("The stage: everything on this machine")
    for post in stage.posts:
        printer = post.printer
        screen.tell(f"{post.name}, a simulated {post.model}, certificate CN = {printer.serial}")
        screen.tell(f"  MQTT over TLS on port {printer.mqtt_port}, FTPS on port {printer.ftps_port}")
    screen.tell(f"A simulated Etsy at {stage.etsy.base_url}")
    screen.tell(f"A simulated OpenWeatherMap at {stage.weather.base_url}")
    screen.tell(f"A mail server on port {stage.mail.port}, and a receiver of webhooks for each printer")
    stage.start_app()
    screen.tell(f"The app with its worker at {stage.base_url}", "FLASK_ENV=development AUTO_DB_CREATE=1 python app.py")
    screen.tell(f"  its SQLite database migrated, in {shown_path(stage.scene.folder)}")


def set_up_shop(show: Show) -> dict[int, str]:
    """The SHA-256 of what was uploaded, by the id of the print file."""
    seller, screen = show.seller, show.screen
    screen.open_phase("A seller sets up shop")
    user = seller.register()
    screen.tell(f"Account {user['email']}", "POST /api/auth/register")
    sha256 = dict(_add_product(show, product) for product in PRODUCTS)
    seller.put("/api/auth/user", {"auto_schedule": True, "place_name": PLACE, "indoor_temperature_c": ROOM_C})
    screen.tell("Paid orders shall become prints by themselves", 'PUT /api/auth/user {"auto_schedule": true, …}')
    return sha256


def _add_product(show: Show, product: Product) -> tuple[int, str]:
    seller, screen = show.seller, show.screen
    content = product.slice()
    file = seller.upload(product.file_name, content)
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
    seller.post("/api/product-profiles", profile)
    screen.tell(f"{product.title}: {product.file_name}", "POST /api/print-files, /api/product-profiles")
    screen.tell(f"  {product.units_per_plate} on a plate, {product.plate.minutes:.0f} min, {grams} g of {material}")
    return file["id"], hashlib.sha256(content).hexdigest()


def add_printers(show: Show) -> None:
    """Raises DemoFailed where one cannot be heard."""
    show.screen.open_phase("Two printers join the farm")
    for post in show.stage.posts:
        _add_printer(show, post)
    for post in show.stage.posts:
        _greet(show, post)
    judges.judge_printers(show.checks, show.stage.posts)


def _add_printer(show: Show, post: Post) -> None:
    seller, screen, printer = show.seller, show.screen, post.printer
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
        _load(seller, path, {"slot": slot, "material_type": material, "color": color})
    screen.tell("  a kilogram of PLA in slot 0, one of PETG in slot 1", f"POST {path}")
    if post.has_outside_spool:
        material, color = OUTSIDE
        _load(seller, path, {"ams_id": 255, "tray_id": 0, "material_type": material, "color": color})
        screen.tell(f"  a kilogram of {material} (nylon) on the holder outside of its AMS", f"POST {path}")
    path = f"/api/bambu/notifications/{post.printer_id}"
    post.webhook_secret = seller.put(path, {"webhook_url": post.receiver.url})["webhook_secret"]
    post.receiver.trust(show.stage.scene.receivers_trust or post.webhook_secret)
    screen.tell("  e-mails, and webhooks signed with a secret shown once", f"PUT {path}")


def _load(seller: Seller, path: str, spool: Mapping[str, Any]) -> None:
    seller.post(path, {**spool, "weight_grams": SPOOL_GRAMS, "cost_per_kg": COST_PER_KG, "vendor": "Bambu Lab"})


def _greet(show: Show, post: Post) -> None:
    """Waits for the printer's first report, then says what only a person can know: what is on the plate."""
    path = f"/api/printer-connections/{post.connection_id}/status"
    status: dict[str, Any] = {}

    def is_known() -> bool:
        status.update(show.seller.get(path))
        return (status["connection_status"], status["state"]) == ("connected", "idle")

    if not show.stage.wait_until(is_known):
        why = status["reason"] or status["connection_status"]
        raise DemoFailed(f"{post.name} cannot be heard through the API: {why.rstrip('.')}. {show.stage.log_hint()}")
    show.screen.tell(
        f"{post.name} is {status['connection_status']}: {status['state']}, {status['nozzle_temp']:.0f} °C, "
        f"{len(status['materials'])} spools",
        f"GET {path}",
    )
    path = f"/api/printers/{post.printer_id}/plate-cleared"
    show.seller.post(path, {"print_id": None})
    show.screen.tell(f"  a person has looked: the plate of {post.name} is empty", f"POST {path}")


def look_at_filament(show: Show) -> None:
    screen = show.screen
    screen.open_phase("Is the filament dry?")
    path = "/api/weather/filament-advice"
    advice = show.seller.get(path)
    outdoor, indoor, place = advice["outdoor"], advice["indoor"], advice["place"]
    if outdoor is None:
        screen.tell(" ".join(advice["missing"]), f"GET {path}")
    else:
        screen.tell(
            f"{place['name']}: {outdoor['temperature_c']:g} °C and {outdoor['humidity_percent']:g} % outside are "
            f"{indoor['humidity_percent']:.0f} % at {indoor['temperature_c']:g} °C inside",
            f"GET {path}",
        )
    fine = [each for each in advice["materials"] if each["action"] == "fine"]
    for each in advice["materials"]:
        if each not in fine:
            screen.tell(f"  {_spool(each)}: {each['action'].replace('_', ' ')}. {each['advice'][0]}", color="yellow")
    if fine:
        screen.tell(f"  {', '.join(_spool(each) for each in fine)}: fine, says the AMS", color="green")
    judges.judge_weather(show.checks, show.stage.weather, advice)


def _spool(each: Mapping[str, Any]) -> str:
    return f"{each['material_type']} on {each['printer_name']}"
