"""Spools: the seeds' lifecycle, the stages and their edges, the ledger of every gram, the places on a printer."""

from __future__ import annotations

import threading
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bambu_report import PrinterState
from farm.interlocks import Interlock
from farm.materials import Stage, StageLimits, shares_of, stage_of, use_filament
from farm.readiness import printer_facts, verdict_on
from farm.starter import StartRules
from models import (
    BambuMaterial,
    Delivery,
    LedgerEntry,
    LedgerKind,
    PrintEvent,
    ScheduledPrint,
    db,
)
from tests.conftest import BASE_TIME, Clock
from tests.farm_builder import Farm

PATH = "/api/bambu/materials"
FIELDS = {
    *("id", "printer_id", "slot", "ams_id", "tray_id", "material_type", "color", "weight_grams", "remaining_pct"),
    *("remaining_grams", "used_grams", "cost_used", "stage", "vendor", "cost_per_kg", "notes", "loaded_at"),
    *("last_synced", "removed_at", "created_at", "updated_at"),
}


@pytest.fixture
def printer_id(farm: Farm) -> int:
    return int(farm.add_printer()["id"])


def live(farm: Farm, printer_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = farm.get(f"{PATH}/{printer_id}").json
    return found


def with_removed(farm: Farm, printer_id: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = farm.get(f"{PATH}/{printer_id}?include=removed").json
    return found


def one(farm: Farm, printer_id: int, material_id: int) -> dict[str, Any]:
    return next(each for each in with_removed(farm, printer_id) if each["id"] == material_id)


def use(farm: Farm, printer_id: int, grams: float, slot: int = 0) -> dict[str, Any]:
    """A print that took so many grams from a slot."""
    made = farm.add_print(printer_id, material_slot=slot)
    return farm.move(made["id"], "started", "completed", used_grams=grams)


def events(farm: Farm, material_id: int) -> list[str]:
    with farm.database() as session:
        query = sa.select(PrintEvent.kind).where(PrintEvent.material_id == material_id).order_by(PrintEvent.id)
        return [kind for kind in session.execute(query).scalars() if kind != "material.changed"]


def ledger(farm: Farm, material_id: int) -> list[LedgerEntry]:
    with farm.database() as session:
        query = sa.select(LedgerEntry).where(LedgerEntry.material_id == material_id).order_by(LedgerEntry.id)
        found = list(session.execute(query).scalars())
        session.expunge_all()
        return found


def balance(farm: Farm, material_id: int) -> Decimal:
    with farm.database() as session:
        query = sa.select(BambuMaterial.remaining_grams).where(BambuMaterial.id == material_id)
        return Decimal(session.execute(query).scalar_one())


def assert_ledger_agrees(farm: Farm, material_id: int) -> None:
    assert sum(entry.delta_grams for entry in ledger(farm, material_id)) == balance(farm, material_id)


# What a material is


def test_a_material_has_exactly_the_fields_of_the_contract(farm: Farm, printer_id: int) -> None:
    made = farm.add_material(printer_id)
    assert set(made) == FIELDS
    assert set(live(farm, printer_id)[0]) == FIELDS


def test_a_new_material_answers_what_was_sent_and_the_defaults(farm: Farm, printer_id: int) -> None:
    made = farm.made(f"{PATH}/{printer_id}", {"slot": 3, "material_type": "PETG", "weight_grams": 750.5})
    shown = {name: made[name] for name in ("printer_id", "slot", "ams_id", "tray_id", "material_type", "weight_grams")}
    assert shown == {
        "printer_id": printer_id,
        "slot": 3,
        "ams_id": 0,
        "tray_id": 3,
        "material_type": "PETG",
        "weight_grams": 750.5,
    }
    assert (made["remaining_pct"], made["remaining_grams"], made["used_grams"], made["stage"]) == (100, 750.5, 0, "new")
    assert [made[name] for name in ("color", "vendor", "cost_per_kg", "cost_used", "notes", "removed_at")] == [None] * 6
    assert made["loaded_at"] == made["created_at"] == "2026-11-21T09:00:00Z"


def test_a_material_without_a_price_has_no_cost(farm: Farm, printer_id: int) -> None:
    made = farm.add_material(printer_id, cost_per_kg=None)
    use(farm, printer_id, 40)
    assert (one(farm, printer_id, made["id"])["used_grams"], one(farm, printer_id, made["id"])["cost_used"]) == (
        40,
        None,
    )


def test_a_material_bought_for_nothing_costs_nothing(farm: Farm, printer_id: int) -> None:
    made = farm.add_material(printer_id, cost_per_kg=0)
    use(farm, printer_id, 40)
    assert one(farm, printer_id, made["id"])["cost_used"] == 0


def test_cost_is_rounded_half_up_and_only_on_the_way_out(farm: Farm, printer_id: int) -> None:
    made = farm.add_material(printer_id, cost_per_kg=10)
    for _ in range(4):
        # Half a cent each: rounded one by one, and not before they are added up.
        assert use(farm, printer_id, 0.5)["material_cost"] == 0.01
    assert one(farm, printer_id, made["id"])["cost_used"] == 0.02


# The seeds' lifecycle


def test_the_seeds_table_comes_out(farm: Farm, printer_id: int) -> None:
    spool = farm.add_material(printer_id, weight_grams=250, cost_per_kg=25)
    rows = []

    def note() -> None:
        found = one(farm, printer_id, spool["id"])
        rows.append(
            tuple(found[name] for name in ("remaining_grams", "remaining_pct", "stage", "used_grams", "cost_used"))
        )

    note()
    for grams in (45, 30, 125, 45, 5):
        use(farm, printer_id, grams)
        note()
    assert rows == [
        (250, 100, "new", 0, 0),
        (205, 82, "in_use", 45, 1.13),
        (175, 70, "low", 75, 1.88),
        (50, 20, "critical", 200, 5),
        (5, 2, "replace", 245, 6.13),
        (0, 0, "depleted", 250, 6.25),
    ]
    assert live(farm, printer_id) == []
    assert one(farm, printer_id, spool["id"])["removed_at"] is not None
    assert events(farm, spool["id"]) == ["material.low", "material.critical", "material.replace", "material.depleted"]
    assert_ledger_agrees(farm, spool["id"])


def test_a_depleted_spool_frees_its_slot(farm: Farm, printer_id: int) -> None:
    old = farm.add_material(printer_id, weight_grams=10)
    use(farm, printer_id, 10)
    new = farm.add_material(printer_id)
    assert [each["id"] for each in live(farm, printer_id)] == [new["id"]]
    assert [each["id"] for each in with_removed(farm, printer_id)] == [old["id"], new["id"]]


# Stages


@pytest.mark.parametrize(
    ("weight", "remaining", "stage"),
    [
        ("1000", "1000", "new"),
        ("1000", "999.999", "in_use"),
        ("1000", "700.001", "in_use"),
        ("1000", "700", "low"),
        ("1000", "200.001", "low"),
        ("1000", "200", "critical"),
        ("1000", "30", "critical"),
        ("1000", "20.001", "critical"),
        ("1000", "20", "replace"),
        ("1000", "0.001", "replace"),
        ("1000", "0", "depleted"),
        # Under 30 g is critical on every spool: that is what the rule does for small ones.
        ("100", "70", "low"),
        ("100", "30", "low"),
        ("100", "29.999", "critical"),
        ("40", "40", "new"),
        ("40", "30", "in_use"),
        ("40", "29.999", "critical"),
        ("25", "25", "critical"),
        ("25", "0.5", "replace"),
    ],
)
def test_a_stage_begins_on_its_edge_and_the_worst_that_applies_wins(weight: str, remaining: str, stage: str) -> None:
    assert stage_of(Decimal(weight), Decimal(remaining), StageLimits()) == stage


@given(weight=st.decimals("0.001", 100_000, places=3), share=st.decimals(0, 1, places=6))
def test_a_stage_never_gets_better_while_a_spool_runs_down(weight: Decimal, share: Decimal) -> None:
    order = list(Stage)
    more = (weight * share).quantize(Decimal("0.001"))
    less = max(Decimal(0), more - Decimal("0.001"))
    limits = StageLimits()
    assert order.index(stage_of(weight, less, limits)) >= order.index(stage_of(weight, more, limits))


def test_the_edges_are_settings(farm: Farm) -> None:
    limits = StageLimits(Decimal(50), Decimal(10), Decimal(0), Decimal(1))
    grams = [Decimal(each) for each in (51, 50, 11, 10, 2, 1)]
    assert [stage_of(Decimal(100), each, limits) for each in grams] == [
        *("in_use", "low", "low", "critical", "critical", "replace")
    ]


# Alerts


def test_a_jump_over_stages_alerts_once_for_the_worst_one(farm: Farm, printer_id: int) -> None:
    spool = farm.add_material(printer_id)
    use(farm, printer_id, 985)
    assert events(farm, spool["id"]) == ["material.replace"]


def test_a_stage_alerts_only_once(farm: Farm, printer_id: int) -> None:
    spool = farm.add_material(printer_id)
    for grams in (300, 100, 100):
        use(farm, printer_id, grams)
    assert events(farm, spool["id"]) == ["material.low"]


def test_an_alert_is_armed_again_when_the_spool_rises(farm: Farm, printer_id: int) -> None:
    spool = farm.add_material(printer_id)
    for percent in (60, 15, 60, 15, 100, 60):
        assert farm.put(f"{PATH}/{spool['id']}", {"remaining_pct": percent}).status_code == 200
    assert events(farm, spool["id"]) == ["material.low", "material.critical", "material.critical", "material.low"]


def test_a_spool_that_is_loaded_half_empty_does_not_alert_at_once(farm: Farm, printer_id: int) -> None:
    spool = farm.add_material(printer_id, remaining_pct=15)
    assert (spool["stage"], events(farm, spool["id"])) == ("critical", [])
    use(farm, printer_id, 135)
    assert events(farm, spool["id"]) == ["material.replace"]


def test_a_stage_alert_is_delivered_as_the_preferences_say(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    use(farm, printer_id, 300)
    with farm.database() as session:
        told = session.execute(sa.select(Delivery).order_by(Delivery.id.desc()).limit(2)).scalars().all()
        kinds = {each.payload["type"] for each in told}
        assert kinds == {"material.low", "print.completed"}
        material = next(each.payload["data"]["material"] for each in told if each.payload["type"] == "material.low")
    assert (material["slot"], material["remaining_grams"], material["remaining_pct"]) == (0, 700, 70)


# Places on a printer


@pytest.mark.parametrize(
    ("place", "slot", "ams_id", "tray_id"),
    [
        ({"slot": 0}, 0, 0, 0),
        ({"slot": 7}, 7, 1, 3),
        ({"ams_id": 1, "tray_id": 2}, 6, 1, 2),
        ({"ams_id": 2, "tray_id": 0}, None, 2, 0),
        ({"ams_id": 128, "tray_id": 0}, None, 128, 0),
        ({"ams_id": 255, "tray_id": 0}, None, 255, 0),
    ],
)
def test_a_place_is_a_slot_or_a_unit_and_its_tray(
    farm: Farm, printer_id: int, place: dict[str, int], slot: int | None, ams_id: int, tray_id: int
) -> None:
    made = farm.made(f"{PATH}/{printer_id}", {"material_type": "PLA", "weight_grams": 1000, **place})
    assert (made["slot"], made["ams_id"], made["tray_id"]) == (slot, ams_id, tray_id)


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"slot": 0, "ams_id": 0, "tray_id": 0},
        {"ams_id": 1},
        {"tray_id": 1},
        {"slot": 8},
        {"slot": -1},
        {"slot": None},
        {"slot": "1"},
        {"slot": True},
        {"slot": 1.5},
        {"ams_id": 256, "tray_id": 0},
    ],
)
def test_a_post_names_one_place_and_only_one(farm: Farm, printer_id: int, place: dict[str, Any]) -> None:
    answer = farm.post(f"{PATH}/{printer_id}", {"material_type": "PLA", "weight_grams": 1000, **place})
    assert answer.status_code == 422, answer.text
    assert {"slot", "ams_id", "tray_id"} & set(answer.json["fields"])
    assert live(farm, printer_id) == []


def test_a_slot_and_its_unit_and_tray_are_the_same_place(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id, slot=5)
    again = {"ams_id": 1, "tray_id": 1, "material_type": "PLA", "weight_grams": 1000}
    assert farm.post(f"{PATH}/{printer_id}", again).status_code == 409


def test_a_taken_slot_is_a_conflict(farm: Farm, printer_id: int) -> None:
    first = farm.add_material(printer_id)
    answer = farm.post(f"{PATH}/{printer_id}", {"slot": 0, "material_type": "PLA", "weight_grams": 1000})
    assert (answer.status_code, answer.json["code"]) == (409, "slot_taken")
    assert live(farm, printer_id) == [first]


def test_replace_retires_the_old_spool_to_history(farm: Farm, printer_id: int, clock: Clock) -> None:
    old = farm.add_material(printer_id, color="#111111")
    use(farm, printer_id, 40)
    clock.forward(minutes=10)
    new = farm.add_material(printer_id, color="#222222", replace=True)
    assert live(farm, printer_id) == [new]
    retired, present = with_removed(farm, printer_id)
    assert (retired["id"], retired["removed_at"], retired["used_grams"]) == (old["id"], "2026-11-21T09:10:00Z", 40)
    assert present == new


def test_replace_needs_no_old_spool(farm: Farm, printer_id: int) -> None:
    assert farm.add_material(printer_id, replace=True)["slot"] == 0


def test_the_same_slot_of_another_printer_is_another_place(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id)
    farm.add_material(farm.add_printer("Right")["id"])


def test_materials_are_listed_by_slot(farm: Farm, printer_id: int) -> None:
    for place in ({"ams_id": 255, "tray_id": 0}, {"slot": 5}, {"slot": 0}, {"ams_id": 2, "tray_id": 1}, {"slot": 4}):
        farm.made(f"{PATH}/{printer_id}", {"material_type": "PLA", "weight_grams": 1000, **place})
    assert [each["slot"] for each in live(farm, printer_id)] == [0, 4, 5, None, None]


def test_the_list_is_a_bare_array_with_its_full_count(farm: Farm, printer_id: int) -> None:
    for slot in range(3):
        farm.add_material(printer_id, slot=slot)
    answer = farm.get(f"{PATH}/{printer_id}?limit=2&include=removed")
    assert ([each["slot"] for each in answer.json], answer.headers["X-Total-Count"]) == ([0, 1], "3")
    assert answer.headers["Link"] == f'<{PATH}/{printer_id}?include=removed&limit=2&offset=2>; rel="next"'


def test_a_list_takes_a_printers_id_and_a_change_the_materials_own(farm: Farm) -> None:
    farm.add_printer()
    right = farm.add_printer("Right")["id"]
    material = farm.add_material(right)["id"]
    assert material != right
    assert farm.get(f"{PATH}/{right}").json[0]["id"] == material
    assert farm.put(f"{PATH}/{material}", {"vendor": "Acme"}).json["id"] == material


# Changing


def test_a_put_changes_only_the_keys_it_sends_and_stamps_last_synced(farm: Farm, printer_id: int, clock: Clock) -> None:
    before = farm.add_material(printer_id, vendor="Acme", notes="dry")
    clock.forward(minutes=5)
    after = farm.put(f"{PATH}/{before['id']}", {"notes": "wet"}).json
    stamp = "2026-11-21T09:05:00Z"
    assert after == before | {"notes": "wet", "last_synced": stamp, "updated_at": stamp}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"material_type": "PETG"}, {"material_type": "PETG"}),
        ({"color": "#11223344"}, {"color": "#11223344"}),
        ({"color": "sky blue"}, {"color": "sky blue"}),
        ({"color": None}, {"color": None}),
        ({"vendor": "Acme"}, {"vendor": "Acme"}),
        ({"cost_per_kg": 31.5}, {"cost_per_kg": 31.5}),
        ({"notes": "wet"}, {"notes": "wet"}),
        ({"slot": 6}, {"slot": 6, "ams_id": 1, "tray_id": 2}),
        ({"ams_id": 255, "tray_id": 0}, {"slot": None, "ams_id": 255}),
        ({"remaining_pct": 55.5}, {"remaining_pct": 55.5, "remaining_grams": 555, "used_grams": 445}),
        ({"weight_grams": 500}, {"weight_grams": 500, "remaining_pct": 100, "remaining_grams": 500}),
        ({"weight_grams": 500, "remaining_pct": 10}, {"weight_grams": 500, "remaining_grams": 50, "stage": "critical"}),
    ],
)
def test_every_field_can_be_put(farm: Farm, printer_id: int, change: dict[str, Any], shown: dict[str, Any]) -> None:
    material = farm.add_material(printer_id)
    answer = farm.put(f"{PATH}/{material['id']}", change)
    assert answer.status_code == 200, answer.text
    assert {name: answer.json[name] for name in shown} == shown
    assert_ledger_agrees(farm, material["id"])


def test_a_put_into_a_taken_slot_is_a_conflict(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id, slot=0)
    second = farm.add_material(printer_id, slot=1)
    assert farm.put(f"{PATH}/{second['id']}", {"slot": 0}).json["code"] == "slot_taken"
    assert farm.put(f"{PATH}/{second['id']}", {"slot": 1}).status_code == 200


def test_a_put_of_percent_or_weight_is_booked_as_a_correction(farm: Farm, printer_id: int) -> None:
    material = farm.add_material(printer_id)
    farm.put(f"{PATH}/{material['id']}", {"remaining_pct": 40})
    farm.put(f"{PATH}/{material['id']}", {"weight_grams": 500})
    booked = [(entry.kind, entry.delta_grams) for entry in ledger(farm, material["id"])]
    assert booked == [(LedgerKind.loaded, 1000), (LedgerKind.corrected, -600), (LedgerKind.corrected, -200)]


def test_percent_is_a_view_with_two_decimals_on_grams_with_three(farm: Farm, printer_id: int) -> None:
    material = farm.add_material(printer_id, weight_grams=300)
    shown = farm.put(f"{PATH}/{material['id']}", {"remaining_pct": 33.3333333}).json
    assert (shown["remaining_pct"], shown["used_grams"], balance(farm, material["id"])) == (
        33.33,
        200,
        Decimal("100.000"),
    )


def test_remaining_grams_are_shown_with_one_decimal_rounded_half_up(farm: Farm, printer_id: int) -> None:
    material = farm.add_material(printer_id)
    use(farm, printer_id, 0.75)
    assert one(farm, printer_id, material["id"])["remaining_grams"] == 999.3


def test_a_put_to_nothing_takes_the_spool_out_of_its_slot(farm: Farm, printer_id: int) -> None:
    material = farm.add_material(printer_id)
    answer = farm.put(f"{PATH}/{material['id']}", {"remaining_pct": 0})
    assert (answer.status_code, answer.json["stage"], answer.json["remaining_pct"]) == (200, "depleted", 0)
    assert answer.json["removed_at"] is not None
    assert live(farm, printer_id) == []
    assert_ledger_agrees(farm, material["id"])


@pytest.mark.parametrize("change", [{"remaining_pct": 50}, {"notes": "found again"}, {}])
def test_a_put_on_a_removed_spool_is_a_conflict(farm: Farm, printer_id: int, change: dict[str, Any]) -> None:
    material = farm.add_material(printer_id)
    farm.delete(f"{PATH}/{material['id']}")
    before = with_removed(farm, printer_id)
    assert farm.put(f"{PATH}/{material['id']}", change).status_code == 409
    assert with_removed(farm, printer_id) == before


def test_delete_takes_a_spool_out_of_its_slot_and_keeps_the_record(farm: Farm, printer_id: int, clock: Clock) -> None:
    material = farm.add_material(printer_id)
    use(farm, printer_id, 40)
    clock.forward(minutes=5)
    assert farm.delete(f"{PATH}/{material['id']}").status_code == 200
    assert live(farm, printer_id) == []
    kept = one(farm, printer_id, material["id"])
    assert (kept["removed_at"], kept["used_grams"]) == ("2026-11-21T09:05:00Z", 40)
    clock.forward(minutes=5)
    assert farm.delete(f"{PATH}/{material['id']}").status_code == 200
    assert one(farm, printer_id, material["id"]) == kept
    assert_ledger_agrees(farm, material["id"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("weight_grams", bad) for bad in (0, -1, 100_000.001, "5", True, None, 0.0004)],
        *[("remaining_pct", bad) for bad in (-0.01, 100.01, "5", True, None)],
        *[("cost_per_kg", bad) for bad in (-0.01, 100_000.01, "5", True)],
        *[("material_type", bad) for bad in ("", " ", "x" * 256, 5, None, "a\x00b")],
        *[("color", bad) for bad in ("#GGGGGG", "#123", "#1234567", "", "x" * 256, 5)],
        *[("vendor", bad) for bad in ("", "x" * 256, 5)],
        *[("notes", bad) for bad in ("x" * 2001, 5)],
        *[("replace", bad) for bad in (1, "true", None)],
        *[(name, 1) for name in ("id", "user_id", "used_grams", "created_at", "stage", "nonsense")],
    ],
)
def test_what_is_out_of_range_or_unknown_is_refused_by_name(
    farm: Farm, printer_id: int, field: str, value: Any
) -> None:
    body = {"slot": 0, "material_type": "PLA", "weight_grams": 1000, field: value}
    answer = farm.post(f"{PATH}/{printer_id}", body)
    assert answer.status_code == 422, answer.text
    assert list(answer.json["fields"]) == [field]
    assert live(farm, printer_id) == []
    material = farm.add_material(printer_id)
    answer = farm.put(f"{PATH}/{material['id']}", {field: value})
    assert answer.status_code == 422, answer.text
    assert live(farm, printer_id) == [material]


def test_a_spool_cannot_be_loaded_empty(farm: Farm, printer_id: int) -> None:
    body = {"slot": 0, "material_type": "PLA", "weight_grams": 1000, "remaining_pct": 0}
    answer = farm.post(f"{PATH}/{printer_id}", body)
    assert (answer.status_code, list(answer.json["fields"])) == (422, ["remaining_pct"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("weight_grams", good) for good in (0.001, 100_000)],
        *[("remaining_pct", good) for good in (0.01, 0.001, 100)],
        *[("cost_per_kg", good) for good in (0, 100_000, 12.3456)],
        *[("material_type", good) for good in ("x", "ü" * 255, "PLA-CF <svg onload>")],
        ("notes", "x" * 2000),
    ],
)
def test_the_edges_of_a_range_belong_to_it(farm: Farm, printer_id: int, field: str, value: Any) -> None:
    made = farm.add_material(printer_id, **{field: value})
    if field != "remaining_pct":
        assert made[field] == value
    assert_ledger_agrees(farm, made["id"])


def test_all_faults_are_told_at_once(farm: Farm, printer_id: int) -> None:
    answer = farm.post(f"{PATH}/{printer_id}", {"slot": 9, "weight_grams": -1, "color": "#x", "nonsense": 1})
    assert set(answer.json["fields"]) == {"slot", "weight_grams", "color", "material_type", "nonsense"}


# The ledger


def test_what_a_print_used_is_booked_from_its_slot(farm: Farm, printer_id: int) -> None:
    material = farm.add_material(printer_id, slot=2)
    done = use(farm, printer_id, 12.345, slot=2)
    assert (done["used_grams"], done["material_cost"]) == (12.345, 0.25)
    entry = ledger(farm, material["id"])[-1]
    assert (entry.kind, entry.delta_grams, entry.print_id) == (LedgerKind.used, Decimal("-12.345"), done["id"])


def test_tenths_add_up_exactly(farm: Farm, printer_id: int) -> None:
    material = farm.add_material(printer_id, weight_grams=1)
    use(farm, printer_id, 0.1)
    use(farm, printer_id, 0.2)
    shown = one(farm, printer_id, material["id"])
    assert (shown["used_grams"], shown["remaining_pct"]) == (0.3, 70)
    assert balance(farm, material["id"]) == Decimal("0.700")


def test_more_used_than_there_was_ends_at_nothing_and_is_recorded(farm: Farm, printer_id: int) -> None:
    material = farm.add_material(printer_id, weight_grams=50)
    done = use(farm, printer_id, 80)
    assert (done["used_grams"], done["material_cost"]) == (80, 1.6)
    shown = one(farm, printer_id, material["id"])
    assert (shown["remaining_grams"], shown["used_grams"], shown["stage"]) == (0, 50, "depleted")
    entry = ledger(farm, material["id"])[-1]
    assert (entry.delta_grams, entry.wanted_grams) == (Decimal(-50), Decimal(80))
    assert_ledger_agrees(farm, material["id"])


GRAMS = st.one_of(
    st.decimals(0, 400, places=3),
    st.sampled_from([Decimal(each) for each in ("0.0005", "0.0015", "0.0004", "0.1", "0.2", "1e-9", "0.123456")]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("use"), GRAMS),
        st.tuples(st.just("percent"), st.decimals(0, 100, places=5)),
        st.tuples(st.just("weight"), st.decimals(1, 2000, places=4)),
    ),
    max_size=5,
)


@example(weight=Decimal(1), percent=Decimal(100), steps=[("use", Decimal("0.0005"))])
@example(weight=Decimal("1.0005"), percent=Decimal("0.001"), steps=[("percent", Decimal("0.00001"))])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(weight=st.decimals("0.5", 1500, places=4), percent=st.decimals("0.001", 100, places=5), steps=STEPS)
def test_the_ledgers_sum_is_the_balance_after_any_uses_and_corrections(
    farm: Farm, printer_id: int, weight: Decimal, percent: Decimal, steps: list[tuple[str, Decimal]]
) -> None:
    material = farm.add_material(printer_id, weight_grams=float(weight), remaining_pct=float(percent), replace=True)
    for act, amount in steps:
        if act == "use":
            use(farm, printer_id, float(amount))
        else:
            name = {"percent": "remaining_pct", "weight": "weight_grams"}[act]
            assert farm.put(f"{PATH}/{material['id']}", {name: float(amount)}).status_code in (200, 409)
        assert_ledger_agrees(farm, material["id"])
        shown = one(farm, printer_id, material["id"])
        left = balance(farm, material["id"])
        assert Decimal(str(shown["remaining_grams"])) == left.quantize(Decimal("0.1"), ROUND_HALF_UP)
        assert (shown["stage"] == "depleted") is (left == 0) is (shown["removed_at"] is not None)


def test_eight_writers_book_to_the_milligram(app: Flask, farm: Farm, printer_id: int) -> None:
    writers, bookings, grams = 8, 25, Decimal("0.123")
    material_id = farm.add_material(printer_id)["id"]
    prints = [farm.add_print(printer_id, material_slot=0)["id"] for _ in range(writers)]
    faults: list[Exception] = []

    def book(print_id: int) -> None:
        for _ in range(bookings):
            with app.app_context():
                try:
                    of_print = db.session.get_one(ScheduledPrint, print_id)
                    ((material, share),) = shares_of(of_print, grams)
                    use_filament(material, share, of_print=of_print, at=BASE_TIME, limits=StageLimits())
                    db.session.commit()
                except Exception as error:
                    faults.append(error)
                    raise

    threads = [threading.Thread(target=book, args=(print_id,)) for print_id in prints]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert faults == []
    assert balance(farm, material_id) == 1000 - writers * bookings * grams
    assert len(ledger(farm, material_id)) == 1 + writers * bookings
    assert_ledger_agrees(farm, material_id)


def test_of_two_spools_for_one_slot_at_the_same_moment_one_is_refused(farm: Farm, printer_id: int) -> None:
    statuses: list[int] = []
    gate = threading.Barrier(4)

    def add() -> None:
        gate.wait()
        body = {"slot": 0, "material_type": "PLA", "weight_grams": 1000}
        statuses.append(farm.post(f"{PATH}/{printer_id}", body).status_code)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(statuses) == [201, 409, 409, 409]


# What may be printed with it


@pytest.fixture
def rules(app: Flask) -> StartRules:
    return StartRules.from_settings(app.extensions["parts"].settings)


def why_not(farm: Farm, print_id: int, rules: StartRules) -> str | None:
    """What stands against the filament of a print, were its printer there."""
    with farm.database() as session:
        waiting = session.get_one(ScheduledPrint, print_id)
        facts = printer_facts(
            waiting.printer, PrinterState(), in_state_since=BASE_TIME, now=BASE_TIME, limits=rules.limits
        )
        here = replace(facts, control_problem=None)
        return verdict_on(waiting, here, now=BASE_TIME, missed_window=rules.missed_window).reasons.get(
            Interlock.filament
        )


def add_sliced(farm: Farm, printer_id: int, **fields: Any) -> dict[str, Any]:
    file_id = farm.add_file()["id"]
    return farm.add_print(printer_id, print_file_id=file_id, material_slot=0, material_color="#112233", **fields)


def test_a_print_is_not_started_on_a_spool_to_be_replaced(farm: Farm, printer_id: int, rules: StartRules) -> None:
    farm.add_material(printer_id, remaining_pct=2)
    waiting = add_sliced(farm, printer_id)
    assert why_not(farm, waiting["id"], rules) == "needs PLA #112233 20 g, slot 0 is nearly empty: replace the spool"


def test_a_print_is_not_started_with_fewer_grams_left_than_it_needs(
    farm: Farm, printer_id: int, rules: StartRules
) -> None:
    farm.add_material(printer_id, weight_grams=100)
    exact = add_sliced(farm, printer_id, estimated_grams=100)
    above = add_sliced(farm, printer_id, estimated_grams=100.001)
    assert why_not(farm, exact["id"], rules) is None
    assert why_not(farm, above["id"], rules) == "needs PLA #112233 100.1 g, slot 0 has 100 g"


# The database itself


@pytest.mark.parametrize(
    "values",
    [
        {"weight_grams": Decimal(0)},
        {"weight_grams": Decimal("100000.001"), "remaining_grams": Decimal(1)},
        {"remaining_grams": Decimal("-0.001")},
        {"remaining_grams": Decimal("1000.001")},
        {"cost_per_kg": Decimal("-0.01")},
        {"cost_per_kg": Decimal("100000.01")},
        {"ams_id": 256},
        {"tray_id": -1},
    ],
)
def test_the_database_holds_the_ranges_too(farm: Farm, printer_id: int, values: dict[str, Any]) -> None:
    material = farm.add_material(printer_id)
    with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
        session.execute(sa.update(BambuMaterial).where(BambuMaterial.id == material["id"]).values(**values))


def test_the_database_holds_one_live_spool_per_place(farm: Farm, printer_id: int) -> None:
    farm.add_material(printer_id, slot=0)
    second = farm.add_material(printer_id, slot=1)
    with farm.database() as session, pytest.raises(sa.exc.IntegrityError):
        session.execute(sa.update(BambuMaterial).where(BambuMaterial.id == second["id"]).values(tray_id=0))
