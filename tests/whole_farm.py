"""A farm with a row of everything, each text carrying its owner's mark, and what each operation takes as a body."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from werkzeug.routing import Rule

from models import Shop
from simulator import Plate, make_sliced_file
from simulator.cloud import CloudAccount
from tests.api_document import path_of
from tests.clouds import account_of
from tests.farm_builder import PASSWORD, Farm

NEVER_USED_ID = 2**31 - 1
_numbers = itertools.count()
CONNECTED_AT = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class WholeFarm:
    """The ids of one account's rows. A `spare_` one may be deleted, a `deleted_` one is; `mark` is in every text."""

    farm: Farm
    mark: str
    printer_id: int
    spare_printer_id: int
    deleted_printer_id: int
    connection_id: int
    spare_connection_id: int
    material_id: int
    spare_material_id: int
    print_id: int
    spare_print_id: int
    deleted_print_id: int
    started_print_id: int
    order_id: int
    order_item_id: int
    file_id: int
    spare_file_id: int
    profile_id: int
    spare_profile_id: int
    batch_id: int
    spare_batch_id: int
    cloud_account_id: int
    spare_cloud_account_id: int
    shop_id: int
    spare_shop_id: int
    channel_id: int
    spare_channel_id: int
    delivery_id: int
    webhook_secret: str
    channel_url: str
    access_code: str
    cloud_token: str
    plate: int = 1

    def ids_for(self, rule: Rule, method: str) -> dict[str, int]:
        """The ids of a rule's path; to delete, spare ones. Raises AttributeError for an argument that is new here."""
        return {
            argument: getattr(self, f"spare_{argument}" if method == "DELETE" else argument)
            for argument in rule.arguments
        }

    def path(self, rule: Rule, method: str) -> str:
        """A rule's path to rows of this account."""
        return path_of(rule, self.ids_for(rule, method))

    def row_named(self, reference: str) -> int:
        """The id for a body's or query's field of that name. Raises KeyError for a name that is new here."""
        found: int = getattr(self, REFERENCES[reference])
        return found


# Fields of bodies and queries that name a row, and whose row they name.
REFERENCES = {
    "printer_id": "printer_id",
    "order_id": "order_id",
    "batch_id": "batch_id",
    "print_file_id": "file_id",
    "print_id": "print_id",
    "id": "print_id",
    "customer_id": "order_id",
    "cloud_account_id": "cloud_account_id",
    "shop_id": "shop_id",
}
# Name a place on a printer or in a file, and no row.
NO_REFERENCES = frozenset({"ams_id", "tray_id", "plate"})


def fill(farm: Farm, mark: str, webhook_url: str = "http://127.0.0.1:9/hook") -> WholeFarm:
    """Make everything that the API can make. `mark`: 4 to 20 letters and digits."""
    access_code, cloud_token = f"{mark}code", f"{mark}-cloud-token"
    lan = {"connection_type": "bambu_lan", "host": "192.0.2.10", "access_code": access_code}
    assert farm.put("/api/auth/user", {"place_name": f"{mark} place"}).status_code == 200
    printer = farm.add_printer(
        f"{mark} printer",
        model=f"{mark} model",
        location=f"{mark} shelf",
        notes=f"{mark} notes",
        serial_number=f"{mark}01",
        **lan,
    )
    connected = farm.add_printer(f"{mark} connected", serial_number=f"{mark}02", **lan)
    bare = farm.add_printer(f"{mark} bare")
    deleted = farm.add_printer(f"{mark} deleted")
    assert farm.delete(f"/api/printers/{deleted['id']}").status_code == 200
    accounts = [_logged_in(farm, account_of(mark, kind)) for kind in ("main", "spare")]
    changed = farm.put(
        f"/api/printer-connections/{connected['connection_id']}",
        {"cloud_token": cloud_token, "cloud_account_id": accounts[0]["id"]},
    )
    assert changed.status_code == 200, changed.text
    preferences = farm.put(
        f"/api/bambu/notifications/{printer['id']}",
        {"webhook_url": f"{webhook_url}/{mark}", "notify_material_change": True},
    ).json
    texts = {"vendor": f"{mark} vendor", "notes": f"{mark} spool", "color": f"{mark} blue"}
    spool = farm.add_material(printer["id"], 0, material_type=f"{mark} PLA", **texts)
    spare_spool = farm.add_material(printer["id"], 1, material_type=f"{mark} PETG", **texts)
    file = _uploaded(farm, mark, 30)
    spare_file = _uploaded(farm, mark, 31)
    profile = farm.add_profile(
        f"{mark} product",
        sku=f"{mark}-sku",
        options={f"{mark} option": f"{mark} value"},
        print_file_id=file["id"],
        preferred_material=f"{mark} PLA",
        preferred_color=f"{mark} blue",
        notes=f"{mark} profile",
    )
    spare_profile = farm.add_profile(f"{mark} spare")
    order = farm.add_order(
        {"title": f"{mark} product", "quantity": 2, "sku": f"{mark}-sku", "options": {f"{mark} size": f"{mark} large"}},
        buyer_name=f"{mark} buyer",
    )
    fields = {"notes": f"{mark} print", "material_slot": 0, "estimated_grams": 12.5}
    queued = farm.add_print(printer["id"], f"{mark} queued", print_file_id=file["id"], **fields)
    spare_print = farm.add_print(printer["id"], f"{mark} spare", **fields)
    gone = farm.add_print(printer["id"], f"{mark} gone", **fields)
    assert farm.delete(f"/api/bambu/scheduled-prints/{gone['id']}").status_code == 200
    done = farm.add_print(printer["id"], f"{mark} done", order_id=order["id"], **fields)
    farm.move(done["id"], "started", "completed")
    failed = farm.add_print(printer["id"], f"{mark} failed", **fields)
    farm.move(failed["id"], "started", "failed", failed_reason=f"{mark} came off")
    started = farm.add_print(printer["id"], f"{mark} running", **fields)
    farm.move(started["id"], "started")
    plate = {"printer_id": connected["id"], "print_file_id": file["id"], "quantity": 1}
    batch, spare_batch = (
        farm.made("/api/print-batches", {"name": f"{mark} {name}", **plate}) for name in ("batch", "spare batch")
    )
    shop_ids = [_shop(farm, mark, kind) for kind in ("main", "spare")]
    # Last, so that nothing goes out through them: they would lead out of this machine.
    channel_url = f"ntfy://{mark}-topic"
    channel = {"name": f"{mark} phone", "url": channel_url}
    channels = [farm.made(f"/api/bambu/notifications/{each['id']}/channels", channel) for each in (printer, bare)]
    return WholeFarm(
        farm=farm,
        mark=mark,
        printer_id=printer["id"],
        spare_printer_id=bare["id"],
        deleted_printer_id=deleted["id"],
        connection_id=printer["connection_id"],
        spare_connection_id=connected["connection_id"],
        material_id=spool["id"],
        spare_material_id=spare_spool["id"],
        print_id=queued["id"],
        spare_print_id=spare_print["id"],
        deleted_print_id=gone["id"],
        started_print_id=started["id"],
        order_id=order["id"],
        order_item_id=order["items"][0]["id"],
        file_id=file["id"],
        spare_file_id=spare_file["id"],
        profile_id=profile["id"],
        spare_profile_id=spare_profile["id"],
        batch_id=batch["id"],
        spare_batch_id=spare_batch["id"],
        cloud_account_id=accounts[0]["id"],
        spare_cloud_account_id=accounts[1]["id"],
        shop_id=shop_ids[0],
        spare_shop_id=shop_ids[1],
        channel_id=channels[0]["id"],
        spare_channel_id=channels[1]["id"],
        delivery_id=farm.get("/api/bambu/deliveries", query_string={"limit": 1}).json[0]["id"],
        webhook_secret=preferences["webhook_secret"],
        channel_url=channel_url,
        access_code=access_code,
        cloud_token=cloud_token,
    )


def _logged_in(farm: Farm, account: CloudAccount) -> dict[str, Any]:
    return farm.made("/api/cloud-accounts", {"account": account.account, "password": account.password})


def _shop(farm: Farm, mark: str, kind: str) -> int:
    """By hand: there is no Etsy here to log in at. Without a login that could be used."""
    with farm.database() as session:
        shop = Shop(
            user_id=farm.user["id"],
            etsy_shop_id=f"{mark}-{kind}",
            etsy_user_id=f"{mark}-owner",
            name=f"{mark} {kind} shop",
            currency="EUR",
            access_token_sealed="",
            refresh_token_sealed="",
            token_expires_at=CONNECTED_AT,
            created_at=CONNECTED_AT,
        )
        session.add(shop)
        session.commit()
        return shop.id


def _mapping(whole: WholeFarm) -> dict[str, Any]:
    """The lists of a product profile, each with one entry that has all that it needs."""
    return {
        "rules": [{"option": "Color", "value": "Navy", "color": "#1F3A93"}],
        "more_plates": [{"print_file_id": whole.file_id}],
    }


def _uploaded(farm: Farm, mark: str, minutes: int) -> dict[str, Any]:
    answer = farm.upload(make_sliced_file(None, [Plate(minutes=minutes)]), f"{mark}-{minutes}.gcode.3mf")
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json
    return made


# The least that each operation takes, by its endpoint. One with required fields that is not in here fails the tests.
BODIES: dict[str, Callable[[WholeFarm], dict[str, Any]]] = {
    "accounts.register": lambda whole: {"email": f"new{next(_numbers)}@example.com", "password": PASSWORD},
    "accounts.log_in": lambda whole: {"email": whole.farm.user["email"], "password": PASSWORD},
    "accounts.refresh": lambda whole: {"refresh_token": "none"},
    "etsy login.finish_etsy_login": lambda whole: {"code": "none", "state": "none"},
    "etsy login.begin_login_with_own_key": lambda whole: {"keystring": "none-of-etsys", "shared_secret": "none"},
    "printers.add_printer": lambda whole: {"name": "New"},
    "printers.clear_plate": lambda whole: {"print_id": None},
    "printer actions.set_speed": lambda whole: {"level": "standard"},
    "printer actions.switch_light": lambda whole: {"on": True},
    "printer actions.clear_error": lambda whole: {"code": "0300-8003"},
    "printer actions.load_filament": lambda whole: {"slot": 0, "nozzle_temp": 220},
    "printer actions.unload_filament": lambda whole: {"nozzle_temp": 220},
    "printer actions.set_filament": lambda whole: {
        "slot": 0,
        "material_type": "PLA",
        "color": "#112233",
        "nozzle_temp_min": 190,
        "nozzle_temp_max": 230,
    },
    "printer connections.add_connection": lambda whole: {
        "printer_id": whole.spare_printer_id,
        "connection_type": "bambu_cloud",
    },
    "cloud accounts.log_in": lambda whole: {
        "account": account_of(whole.mark).account,
        "password": account_of(whole.mark).password,
    },
    "cloud accounts.finish_login": lambda whole: {"code": "123456"},
    "notification channels.add_channel": lambda whole: {"name": "New", "url": "ntfy://new-topic"},
    "materials.add_material": lambda whole: {
        "slot": 5,
        "material_type": "PLA",
        "weight_grams": 1000,
        "replace": True,
    },
    "scheduled prints.add_print": lambda whole: {"printer_id": whole.printer_id, "job_name": "New"},
    "queue.order_queue": lambda whole: {"print_ids": [whole.print_id, whole.spare_print_id]},
    "print batches.add_batch": lambda whole: {
        "name": "New",
        "printer_id": whole.printer_id,
        "print_file_id": whole.file_id,
        "quantity": 1,
    },
    "orders.add_order": lambda whole: {"buyer_name": "New", "items": [{"title": "New", "quantity": 1}]},
    "orders.schedule_prints": lambda whole: {"printer_id": whole.printer_id},
    "shipping.ship": lambda whole: {"tracking_code": "AB 12"},
    "plans.plan_prints": lambda whole: {"printer_id": whole.printer_id},
    "product profiles.add_profile": lambda whole: {"product_name": "New", **_mapping(whole)},
    "product profiles.change_profile": lambda whole: _mapping(whole),
}
