"""Product profiles through the API: how the shop's products are printed."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from models import ProductProfile
from simulator import Plate, make_sliced_file
from tests.conftest import Clock
from tests.farm_builder import Farm

PATH = "/api/product-profiles"
MISSING_ID = 2_000_000_000
FIELDS = {
    *("id", "product_name", "sku", "etsy_listing_id", "options", "print_file_id", "plate", "units_per_plate"),
    *("print_time_minutes", "preferred_material", "preferred_color", "nozzle_temp_c", "bed_temp_c", "print_speed_mms"),
    *("filament_grams", "shop_id", "rules", "more_plates", "notes", "created_at", "updated_at"),
}
SETTABLE: dict[str, Any] = {
    "product_name": "Bowl",
    "sku": "B-1",
    "etsy_listing_id": "1234567890",
    "options": {"Color": "Red"},
    "units_per_plate": 4,
    "print_time_minutes": 95,
    "preferred_material": "PETG",
    "preferred_color": "#A1B2C3",
    "nozzle_temp_c": 240,
    "bed_temp_c": 80,
    "print_speed_mms": 150,
    "filament_grams": 31.25,
    "notes": "brim",
}
NULLABLE = [name for name in SETTABLE if name not in ("product_name", "options")]


def test_a_profile_has_exactly_the_fields_of_the_contract(farm: Farm) -> None:
    made = farm.add_profile()
    assert set(made) == FIELDS
    assert farm.get(PATH).json == {"profiles": [made], "total": 1}
    assert farm.get(f"{PATH}/{made['id']}").json == made


def test_a_profile_needs_only_a_name(farm: Farm) -> None:
    made = farm.made(PATH, {"product_name": "Vase"})
    filled = {name: value for name, value in made.items() if value is not None}
    assert filled == {
        "id": made["id"],
        "product_name": "Vase",
        "options": {},
        "plate": 1,
        "rules": [],
        "more_plates": [],
        "created_at": "2026-11-21T09:00:00Z",
        "updated_at": "2026-11-21T09:00:00Z",
    }
    assert list(farm.post(PATH, {}).json["fields"]) == ["product_name"]


def test_a_profile_keeps_every_field_that_is_sent(farm: Farm) -> None:
    file = farm.add_file(make_sliced_file(None, [Plate(2)]))
    sent = {**SETTABLE, "print_file_id": file["id"], "plate": 2}
    made = farm.made(PATH, sent)
    assert {name: made[name] for name in sent} == sent


@pytest.mark.parametrize("field", SETTABLE)
def test_a_put_changes_only_the_keys_it_sends(farm: Farm, clock: Clock, field: str) -> None:
    before = farm.add_profile("Vase", sku="V-1", bed_temp_c=55)
    clock.forward(minutes=1)
    after = farm.put(f"{PATH}/{before['id']}", {field: SETTABLE[field]})
    assert after.status_code == 200, after.text
    assert after.json == before | {field: SETTABLE[field], "updated_at": "2026-11-21T09:01:00Z"}


@pytest.mark.parametrize("field", NULLABLE)
def test_a_put_of_null_clears_a_field(farm: Farm, field: str) -> None:
    made = farm.made(PATH, SETTABLE)
    assert farm.put(f"{PATH}/{made['id']}", {field: None}).json == made | {field: None}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("product_name", bad) for bad in ("", " ", None, 5, "x" * 256, "a\x00b")],
        *[("sku", bad) for bad in ("", 5, "x" * 256)],
        *[("etsy_listing_id", bad) for bad in ("", "x", "1" * 21, 5, "-1", "٣")],
        *[("options", bad) for bad in ([], "x", 5, None)],
        *[("print_file_id", bad) for bad in ("1", True, 0, 2**31)],
        *[("plate", bad) for bad in (0, 1001, None, "1")],
        *[("units_per_plate", bad) for bad in (0, 10_001, 1.5)],
        *[("print_time_minutes", bad) for bad in (0, 100_001, "9")],
        *[("preferred_material", bad) for bad in ("", 5, "x" * 256)],
        *[("preferred_color", bad) for bad in ("#GGGGGG", "", 5)],
        *[("nozzle_temp_c", bad) for bad in (-1, 501, "200")],
        *[("bed_temp_c", bad) for bad in (-1, 201, True)],
        *[("print_speed_mms", bad) for bad in (0, 2001)],
        *[("filament_grams", bad) for bad in (-0.001, 100_000.001, "9")],
        *[("notes", bad) for bad in ("x" * 2001, 5)],
        *[(name, 1) for name in ("id", "user_id", "created_at", "nonsense")],
    ],
)
def test_what_is_out_of_range_read_only_or_unknown_is_refused_by_name(farm: Farm, field: str, value: Any) -> None:
    kept = farm.add_profile()
    for answer in (
        farm.post(PATH, {"product_name": "Vase", field: value}),
        farm.put(f"{PATH}/{kept['id']}", {field: value}),
    ):
        assert (answer.status_code, list(answer.json["fields"])) == (422, [field])
    assert farm.get(PATH).json == {"profiles": [kept], "total": 1}


def test_options_are_texts_by_name_and_not_too_many(farm: Farm) -> None:
    for bad in ({"Color": 5}, {"Color": None}, {"": "Red"}, {f"Option {number}": "x" for number in range(51)}):
        assert farm.post(PATH, {"product_name": "Vase", "options": bad}).status_code == 422


def test_a_plate_must_be_in_its_file(farm: Farm) -> None:
    file = farm.add_file(make_sliced_file(None, [Plate(1), Plate(3)]))
    body = {"product_name": "Vase", "print_file_id": file["id"]}
    refused = farm.post(PATH, {**body, "plate": 2})
    assert (refused.status_code, refused.json["fields"]["plate"]) == (422, ["The file has no such plate; it has 1, 3."])
    made = farm.made(PATH, {**body, "plate": 3})
    assert farm.put(f"{PATH}/{made['id']}", {"plate": 2}).status_code == 422
    other = farm.add_file(make_sliced_file(None, [Plate(7)]))
    assert farm.put(f"{PATH}/{made['id']}", {"print_file_id": other["id"]}).status_code == 422
    assert farm.put(f"{PATH}/{made['id']}", {"print_file_id": other["id"], "plate": 7}).json["plate"] == 7


def test_profiles_are_listed_by_id_with_their_total(farm: Farm) -> None:
    ids = [farm.add_profile(name)["id"] for name in "CAB"]
    answer = farm.get(f"{PATH}?limit=2&offset=1").json
    assert ([each["id"] for each in answer["profiles"]], answer["total"]) == (ids[1:], 3)


def test_another_users_profile_or_file_answers_like_a_missing_one(farm: Farm, stranger: Farm) -> None:
    theirs, their_file = stranger.add_profile()["id"], stranger.add_file()["id"]
    for method, body in (("GET", None), ("PUT", {"sku": "x"}), ("DELETE", None)):
        answers = [farm.call(method, f"{PATH}/{each}", json=body) for each in (theirs, MISSING_ID)]
        assert (answers[0].status_code, answers[0].data) == (404, answers[1].data)
    mine = farm.add_profile()["id"]
    for bad in (their_file, MISSING_ID):
        assert farm.post(PATH, {"product_name": "x", "print_file_id": bad}).status_code == 404
        assert farm.put(f"{PATH}/{mine}", {"print_file_id": bad}).status_code == 404


def test_a_removed_profile_leaves_its_lines_and_prints(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    profile = farm.add_profile("Vase", print_time_minutes=47)
    order = farm.add_order()
    assert order["items"][0]["profile_id"] == profile["id"]
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"][0]
    answer = farm.delete(f"{PATH}/{profile['id']}")
    assert (answer.status_code, answer.json) == (200, {"message": "Profile removed", "id": profile["id"]})
    assert farm.get(f"{PATH}/{profile['id']}").status_code == 404
    assert farm.get(f"/api/orders/{order['id']}").json["items"][0]["profile_id"] is None
    assert farm.get_print(made["id"]) == made


def test_prints_keep_what_they_were_made_with(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    profile, order = farm.add_profile("Vase", print_time_minutes=47), farm.add_order()
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"][0]
    farm.put(f"{PATH}/{profile['id']}", {"print_time_minutes": 90})
    assert farm.get_print(made["id"]) == made


@pytest.mark.parametrize(
    "values",
    [
        {"plate": 0},
        *[{"units_per_plate": bad} for bad in (0, 10_001)],
        *[{"print_time_minutes": bad} for bad in (0, 100_001)],
        *[{"nozzle_temp_c": bad} for bad in (-1, 501)],
        *[{"bed_temp_c": bad} for bad in (-1, 201)],
        *[{"print_speed_mms": bad} for bad in (0, 2001)],
    ],
)
def test_the_database_holds_the_ranges_too(farm: Farm, values: dict[str, Any]) -> None:
    farm.add_profile()
    with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
        session.execute(sa.update(ProductProfile).values(**values))
