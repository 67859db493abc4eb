"""What to do about moisture: outdoor air turned into indoor, AMS before estimate, and advice that harms no spool."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bambu.filaments import _GENERIC_PROFILES
from bambu.models import MODELS
from farm import filament_advice
from farm.filament_advice import (
    OPEN_PRINTERS,
    READING_GOOD_FOR,
    Action,
    Advice,
    AmsReading,
    Family,
    HumiditySource,
    LoadedMaterial,
    Room,
    advise,
    assumed_room_temperature,
    family_of,
    indoor_humidity,
)

NOW = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
FAMILIES = [each for each in vars(filament_advice).values() if isinstance(each, Family)]


def loaded(material_type: str, days: float = 0, **fields: Any) -> LoadedMaterial:
    place = {"printer_id": 1, "ams_id": 0, "tray_id": 0, "place": "slot 0", "material_id": 7, **fields}
    return LoadedMaterial(material_type=material_type, loaded_at=NOW - timedelta(days=days), **place)


def reading(**fields: Any) -> AmsReading:
    known: dict[str, Any] = {
        "printer_id": 1,
        "ams_id": 0,
        "kind": "AMS",
        "humidity_percent": None,
        "humidity_level": None,
        "temperature_c": None,
        "drying_minutes": 0,
        "heard_at": NOW,
    }
    return AmsReading(**known | fields)


def one(material: LoadedMaterial, *readings: AmsReading, room: Room | None = None) -> Advice:
    (found,) = advise([material], readings, room or Room(), NOW)
    return found


# From outdoors to indoors


@pytest.mark.parametrize(
    ("outdoor_percent", "outdoor_c", "indoor_c", "indoor_percent"),
    [(90, 0, 21, 22), (85, 5, 21, 30), (70, 28, 24, 89), (0, 10, 21, 0), (55, 20, 20, 55), (100, 30, 15, 100)],
)
def test_outdoor_humidity_is_reckoned_to_the_rooms_temperature(
    outdoor_percent: float, outdoor_c: float, indoor_c: float, indoor_percent: int
) -> None:
    assert round(indoor_humidity(outdoor_percent, outdoor_c, indoor_c)) == indoor_percent


def test_a_room_nobody_told_of_is_heated_in_winter_and_warm_in_summer() -> None:
    assert [assumed_room_temperature(each) for each in (-20, 21, 24, 40)] == [21, 21, 24, 26]


def test_a_damp_winters_day_raises_no_alarm() -> None:
    room = Room(humidity_percent=indoor_humidity(90, 0, 21), outdoor_c=0)
    for material in ("PLA", "PETG", "TPU"):
        assert one(loaded(material, 400), room=room).action is Action.fine


# Families


@pytest.mark.parametrize(
    ("written", "family"),
    [
        *[("PLA", "PLA"), ("pla silk", "PLA"), ("PLA+", "PLA"), ("PLA-CF", "PLA"), ("PolyLite PLA Pro", "PLA")],
        *[("PETG", "PETG"), ("PETG-CF", "PETG"), ("PETG HF", "PETG"), ("PCTG", "PETG"), ("PET-CF", "PET")],
        *[("ABS-GF", "ABS"), ("ASA Aero", "ASA"), ("HIPS", "HIPS"), ("PC FR", "PC"), ("pc/abs", "PC")],
        *[("PA", "PA"), ("PA6-CF", "PA"), ("PAHT-CF", "PA"), ("PA612CF", "PA"), ("Nylon 12", "PA"), ("PPA-CF", "PPA")],
        *[
            ("TPU 95A", "TPU"),
            ("TPU for AMS", "TPU"),
            ("PVA", "PVA"),
            ("BVOH", "BVOH"),
            ("PVB", "PVB"),
            ("PP-GF", "PP"),
        ],
        # The one that stands the least heat.
        ("Support for PLA/PETG", "PLA"),
        ("Support for PA/PET", "PET"),
        *[("Wonder", None), ("", None), ("PEEK", None), ("spare parts", None), ("\u202e%s\x00", None)],
    ],
)
def test_a_material_is_known_however_it_is_written(written: str, family: str | None) -> None:
    found = family_of(written)
    assert (found.name if found else None) == family


def test_what_printers_call_generic_is_known_but_for_a_few() -> None:
    unknown = {name for name in _GENERIC_PROFILES if family_of(name) is None}
    assert unknown == {"EVA", "PE", "PE-CF", "PHA"}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda each: each.name)
def test_no_advice_softens_a_spool(family: Family) -> None:
    assert family.drying_c <= family.softens_c - 5
    assert 35 <= family.drying_c <= 100 and 4 <= family.drying_hours <= 12
    assert 1 <= family.needs_level <= 5 and 15 <= family.store_below_percent <= 60
    assert family is family_of(family.name)
    dried = one(loaded(family.name, 500), reading(humidity_percent=95))
    assert dried.action is Action.dry
    said = " ".join(dried.sentences)
    assert f"at {family.drying_c} °C for {family.drying_hours} hours, never hotter than {family.softens_c} °C" in said


# What is known of the air, and what follows


def test_the_reading_of_its_own_ams_comes_before_the_estimate() -> None:
    room = Room(humidity_percent=80)
    dry = one(loaded("PETG", 90), reading(humidity_percent=15), room=room)
    assert (dry.action, dry.source, dry.humidity_percent) == (Action.fine, HumiditySource.ams, 15)
    for elsewhere in (reading(humidity_percent=15, ams_id=1), reading(humidity_percent=15, printer_id=2)):
        wet = one(loaded("PETG", 90), elsewhere, room=room)
        assert (wet.action, wet.source, wet.humidity_percent) == (Action.dry, HumiditySource.outdoor_estimate, 80)
        assert "reckoned from the weather outside" in wet.sentences[0]


@pytest.mark.parametrize("kind", ["AMS Lite", "AMS"])
def test_an_ams_without_a_sensor_leaves_it_to_the_estimate(kind: str) -> None:
    found = one(loaded("PLA"), reading(kind=kind), room=Room(humidity_percent=30))
    assert (found.source, found.action) == (HumiditySource.outdoor_estimate, Action.fine)


def test_a_reading_that_is_old_counts_no_more() -> None:
    old = reading(humidity_percent=90, heard_at=NOW - READING_GOOD_FOR)
    assert one(loaded("PLA", 90), old).source is HumiditySource.none
    recent = reading(humidity_percent=90, heard_at=NOW - READING_GOOD_FOR + timedelta(seconds=1))
    assert one(loaded("PLA", 90), recent).source is HumiditySource.ams


def test_no_humidity_at_all_is_a_value() -> None:
    assert one(loaded("PVA", 90), reading(humidity_percent=0.0)).action is Action.fine
    assert one(loaded("PVA", 90), room=Room(humidity_percent=0.0)).source is HumiditySource.outdoor_estimate


@pytest.mark.parametrize(
    ("material", "level", "action"),
    [
        *[("PLA", 3, Action.fine), ("PLA", 2, Action.dry), ("PETG", 4, Action.fine), ("PETG", 3, Action.dry)],
        *[("PA", 5, Action.fine), ("PA", 4, Action.dry), ("PLA", 1, Action.dry), ("PLA", 5, Action.fine)],
    ],
)
def test_a_level_is_judged_as_a_level_where_five_is_the_driest(material: str, level: int, action: Action) -> None:
    found = one(loaded(material, 90), reading(humidity_level=level))
    assert (found.action, found.humidity_level, found.humidity_percent) == (action, level, None)
    assert f"level {level} of 5 (5 is the driest)" in found.sentences[0]


def test_a_percent_counts_before_a_level() -> None:
    assert one(loaded("PLA", 90), reading(humidity_level=1, humidity_percent=20)).action is Action.fine


def test_the_longer_it_is_loaded_the_sooner_it_is_to_be_dried() -> None:
    wet = reading(humidity_percent=55)
    assert [one(loaded("PLA", days), wet).action for days in (0, 44, 45)] == [
        *[Action.store_sealed, Action.store_sealed, Action.dry]
    ]
    very_wet = reading(humidity_percent=75)
    assert [one(loaded("PLA", days), very_wet).action for days in (21, 22)] == [Action.store_sealed, Action.dry]
    assert one(loaded("PA6-CF", 2), wet).action is Action.dry
    assert one(loaded("PLA", -1), wet).loaded_days == 0


def test_a_thirsty_material_that_was_long_loaded_in_air_nobody_knows_is_dried() -> None:
    assert [one(loaded("PA", days)).action for days in (2, 3)] == [Action.unknown, Action.dry]
    assert one(loaded("PLA", 400)).action is Action.unknown


def test_what_is_not_known_is_said_and_never_heated() -> None:
    found = one(loaded("Wonder", 400), reading(humidity_percent=95))
    assert (found.family, found.action) == (None, Action.unknown)
    assert "°C" not in " ".join(found.sentences) and "95 %" in found.sentences[0]


# Units that heat


def test_a_spool_that_is_being_dried_is_left_to_it() -> None:
    found = one(loaded("PA", 90), reading(humidity_percent=60, drying_minutes=125, kind="AMS HT"))
    assert found.action is Action.drying and "125 more minutes" in found.sentences[0]


def test_a_heated_ams_dries_what_it_is_hot_enough_for() -> None:
    def said(material: str, kind: str) -> str:
        return " ".join(one(loaded(material, 400), reading(humidity_percent=95, kind=kind)).sentences)

    assert "Its AMS 2 Pro can do that" in said("PETG", "AMS 2 Pro")
    assert "Its AMS 2 Pro heats to 65 °C only: use a dryer that reaches 80 °C" in said("ABS", "AMS 2 Pro")
    assert "Its AMS HT can do that" in said("ABS", "AMS HT")
    assert "heats to 85 °C only" in said("PPA-CF", "AMS HT")
    assert "can do that" not in said("PETG", "AMS") and "heats to" not in said("ABS", "AMS")


def test_what_would_soften_beside_it_is_taken_out_first() -> None:
    spools = [
        loaded("PETG", 400),
        loaded("PLA", 400, tray_id=1, place="slot 1"),
        loaded("Wonder", 400, tray_id=2, place="slot 2"),
        loaded("ABS", 400, tray_id=3, place="slot 3"),
        loaded("PLA", 400, ams_id=1, place="slot 4"),
    ]
    petg, pla, *_ = advise(spools, [reading(humidity_percent=95, kind="AMS 2 Pro")], Room(), NOW)
    assert "Take out PLA (slot 1), Wonder (slot 2) first." in " ".join(petg.sentences)
    assert "Take out Wonder (slot 2) first." in " ".join(pla.sentences)


# Enclosure


@pytest.mark.parametrize(
    ("room", "is_cold"),
    [
        (Room(temperature_c=15, outdoor_c=25), True),
        (Room(temperature_c=0), True),
        (Room(temperature_c=18, outdoor_c=-10), False),
        (Room(outdoor_c=9), True),
        (Room(outdoor_c=0), True),
        (Room(outdoor_c=10), False),
        (Room(), False),
    ],
)
def test_what_warps_wants_an_enclosure_in_the_cold(room: Room, is_cold: bool) -> None:
    for material in ("ABS", "ASA", "PC"):
        found = one(loaded(material), room=room)
        assert found.needs_enclosure is is_cold
        assert any("warps in cold air" in sentence for sentence in found.sentences) is is_cold
    assert not one(loaded("PLA"), room=room).needs_enclosure


def test_the_enclosure_is_that_of_the_printer() -> None:
    cold = Room(temperature_c=12)
    assert "put an enclosure around the A1" in one(loaded("ABS", printer_model="A1"), room=cold).sentences[-1]
    assert "door and lid of the P1S closed" in one(loaded("ABS", printer_model="P1S"), room=cold).sentences[-1]
    assert "print it in an enclosure" in one(loaded("ABS"), room=cold).sentences[-1]
    assert {model.name for model in MODELS} >= OPEN_PRINTERS
