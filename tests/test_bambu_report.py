"""What printers say, read: recorded reports value by value, and the odd, partial and hostile ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bambu.values as values
from bambu.errors import Severity
from bambu.keys import EVERYTHING, steps
from bambu_report import (
    Nozzle,
    PrinterActivity,
    PrinterState,
    Raw,
    Storage,
    decode,
    first_raw,
    is_full,
    learn,
    merge,
    read,
)

CAPTURES = Path(__file__).resolve().parents[2] / "shared" / "captures" / "bambu"
ZERO_UUID = "0" * 32


def status(**fields: Any) -> dict[str, Any]:
    return {"print": {"command": "push_status", "msg": 1, **fields}}


def full(**fields: Any) -> dict[str, Any]:
    core = {"gcode_state": "IDLE", "mc_percent": 0, "home_flag": 1 << 8 | 1 << 7, "nozzle_temper": 25.0}
    return status(**{**core, "msg": 0, **fields})


def state_after(*messages: dict[str, Any], serial: str = "") -> PrinterState:
    raw = first_raw(serial)
    for message in messages:
        raw = merge(raw, message)
    return read(raw)


def tray(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "tray_type": "PLA",
        "tray_color": "FF6A13FF",
        "remain": 40,
        "tray_uuid": "AB" * 16,
        "tray_weight": "1000",
        "tray_info_idx": "GFA00",
        "tray_sub_brands": "PLA Basic",
        "nozzle_temp_min": "190",
        "nozzle_temp_max": "230",
        **fields,
    }


def ams(*units: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"ams": list(units), **fields}


def unit(number: int, *trays: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": str(number), "tray": list(trays), **fields}


# Reading bytes.


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'{"print": {"a": 1}}', {"print": {"a": 1}}),
        (b'{"print": {"a": 1}}\x00', {"print": {"a": 1}}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": "\xff\xfe"}', {"a": "\ufffd\ufffd"}),
        (b'{"a": NaN, "b": -Infinity}', {"a": None, "b": None}),
        (b'{"a": "tab\there"}', {"a": "tab\there"}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),
        (b"[1]", None),
        (b"", None),
        (b"\x00", None),
        (b"{", None),
        (b'{"a": 1}{"a": 2}', None),
        (b'{"a":' * 100_000, None),
        (b"[" * 100_000, None),
        (b'{"a": ' + b"9" * 5000 + b"}", None),
        (b'{"a": "' + b"x" * 5_000_000 + b'"}', None),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_payload_decodes_to_an_object_or_to_nothing(payload: bytes, message: object) -> None:
    assert decode(payload) == message


# Full and partial reports.


def test_before_a_full_report_all_is_unknown_and_what_was_heard_counts_afterwards() -> None:
    raw = merge(first_raw(), status(bed_temper=60.5, gcode_state="RUNNING"))
    assert read(raw) == PrinterState()
    raw = merge(raw, status(msg=0, mc_percent=3))
    assert (read(raw).known, read(raw).bed_temp, read(raw).state) == (True, 60.5, PrinterActivity.printing)


def test_a_report_without_a_mark_is_full_only_with_the_core_keys() -> None:
    unmarked = full()["print"]
    del unmarked["msg"]
    assert is_full({"print": unmarked})
    assert state_after({"print": unmarked}).known
    for key in ("gcode_state", "mc_percent", "home_flag", "nozzle_temper"):
        lacking = {name: value for name, value in unmarked.items() if name != key}
        assert not is_full({"print": lacking})


def test_an_answer_to_a_command_is_no_status() -> None:
    answer = {"print": {"command": "extrusion_cali_get", "nozzle_diameter": "0.8", "msg": 0, "gcode_state": "FAILED"}}
    raw = merge(first_raw(), full(nozzle_diameter="0.4"))
    assert merge(raw, answer) is raw
    assert read(raw).nozzles == (Nozzle(0, 0.4, None),)


def test_a_value_of_the_wrong_kind_leaves_the_last_good_one_and_is_counted() -> None:
    good = full(mc_percent=50, layer_num=7, bed_temper=60, hms=[{"attr": 0x03000100, "code": 0x00010007}])
    bad = status(
        mc_percent="x", layer_num=None, bed_temper=[60], hms="none", ams=5, device="?", wifi_signal={}, spd_lvl=9
    )
    before, after = state_after(good), state_after(good, bad)
    assert after == before
    assert after.faults_counted == 8


@pytest.mark.parametrize("given", [True, "٣", "1e3", 101, -1, 2.5, 1e400, "", " 5", {}, [], None, "5\n"])
def test_a_percentage_is_a_number_and_nothing_like_one(given: object) -> None:
    assert state_after(full(mc_percent=40), status(mc_percent=given)).progress_percent == 40


def test_numbers_may_come_as_text() -> None:
    state = state_after(full(mc_percent="40", layer_num="12", nozzle_temper="210.5"))
    assert (state.progress_percent, state.layers_printed, state.nozzle_temp) == (40, 12, 210.5)


def test_texts_come_clean_and_short() -> None:
    state = state_after(full(subtask_name="a\x00b\u202e\x1b[31m \ud800" + "x" * 999, gcode_file=" plate "))
    assert state.job_name is not None
    assert state.job_name.startswith("ab[31m x")
    assert len(state.job_name) <= 200
    assert state.file_name == "plate"


# What a print does.


@pytest.mark.parametrize(
    ("word", "activity"),
    [
        ("IDLE", "idle"),
        ("PREPARE", "preparing"),
        ("SLICING", "preparing"),
        ("RUNNING", "printing"),
        ("PAUSE", "paused"),
        ("FINISH", "finished"),
        ("FAILED", "failed"),
        ("INIT", "unknown"),
        ("OFFLINE", "unknown"),
        ("", "unknown"),
        ("finish", "unknown"),
        ("WHATEVER", "unknown"),
    ],
)
def test_states(word: str, activity: str) -> None:
    assert state_after(full(gcode_state="RUNNING"), status(gcode_state=word)).state == activity


def test_a_cancelled_print_is_told_from_a_failed_one_also_when_the_code_comes_late_and_goes_soon() -> None:
    running = full(gcode_state="RUNNING")
    stopped = status(gcode_state="FAILED", print_error=0)
    code, gone = status(print_error=0x0300400C), status(print_error=0)
    assert not state_after(running, stopped).cancelled
    assert state_after(running, stopped, code).cancelled
    assert state_after(running, stopped, code, gone).cancelled
    assert not state_after(running, stopped, code, gone, status(gcode_state="PREPARE")).cancelled
    assert state_after(running, status(gcode_state="FAILED", print_error=0x0500400E)).cancelled
    assert state_after(running, status(gcode_state="FAILED", fail_reason="50348044")).cancelled
    assert not state_after(running, status(gcode_state="FAILED", print_error=0x0500C010)).cancelled


def test_an_error_that_stays_shown_stops_nothing() -> None:
    state = state_after(full(gcode_state="RUNNING", print_error=0x0500C011))
    assert (state.state, state.print_error, state.cancelled) == (PrinterActivity.printing, "0500-C011", False)
    assert state.faults[0].severity == Severity.common


def test_what_is_left_over_of_the_last_print_is_not_shown() -> None:
    assert state_after(full(gcode_state="FAILED", mc_remaining_time=759)).remaining_minutes is None
    assert state_after(full(gcode_state="PAUSE", mc_remaining_time=759)).remaining_minutes == 759
    for number in (0, -1, 255):
        assert state_after(full(gcode_state="IDLE", stg_cur=number)).stage is None
    assert state_after(full(gcode_state="PAUSE", stg_cur=0)).stage is None
    assert state_after(full(gcode_state="RUNNING", stg_cur=0)).stage == "printing"
    assert state_after(full(gcode_state="PREPARE", stg_cur=2)).stage == "preheating the bed"
    assert state_after(full(gcode_state="RUNNING", stg_cur=222)).stage is None


def test_an_error_may_come_as_a_negative_number() -> None:
    state = state_after(full(gcode_state="FAILED", print_error=0x84001234 - (1 << 32)))
    assert (state.print_error, state.faults[0].message.partition(":")[0]) == ("8400-1234", "printer")
    assert values.flags(-1) == 0xFFFFFFFF


def test_the_submission_is_known_by_its_id() -> None:
    for nothing in ("", "0", 0):
        assert state_after(full(subtask_id=nothing)).submission_id is None
    assert state_after(full(subtask_id="4711")).submission_id == "4711"
    assert state_after(full(subtask_id=4711)).submission_id == "4711"


@pytest.mark.parametrize(
    ("path", "plate"),
    [
        ("/data/Metadata/plate_12.gcode", 12),
        ("p7.gcode.3mf", None),
        ("/usr/etc/print/auto_cali.gcode", None),
        ("", None),
    ],
)
def test_the_plate_is_read_from_the_file(path: str, plate: int | None) -> None:
    assert state_after(full(gcode_file=path)).plate == plate


def test_layers_come_from_either_place() -> None:
    state = state_after(full(**{"3D": {"layer_num": 4, "total_layer_num": 9}}))
    assert (state.layers_printed, state.total_layers) == (4, 9)
    state = state_after(full(layer_num=5, **{"3D": {"layer_num": 4, "total_layer_num": 9}}))
    assert (state.layers_printed, state.total_layers) == (5, 9)


# Heat and hardware.


def test_newer_models_packed_temperatures_win_and_the_active_nozzle_is_shown() -> None:
    device = {
        "bed": {"info": {"temp": 70 << 16 | 69}},
        "ctc": {"info": {"temp": 60 << 16 | 47}},
        "extruder": {"state": 2, "info": [{"id": 0, "temp": 220 << 16 | 219}, {"id": 1, "temp": 31}]},
    }
    report = full(device=device, bed_temper=1, nozzle_temper=31, chamber_temper=5)
    right = state_after(report)
    assert (right.nozzle_temp, right.nozzle_target, right.active_nozzle) == (219, 220, 0)
    assert (right.bed_temp, right.bed_target, right.chamber_temp) == (69, 70, 47)
    left = state_after(report, status(device={"extruder": {"state": 274}}))
    assert (left.nozzle_temp, left.nozzle_target, left.active_nozzle) == (31, 0, 1)
    warmer = state_after(report, status(device={"extruder": {"info": [{"id": 0, "temp": 220 << 16 | 221}]}}))
    assert warmer.nozzle_temp == 221


def test_a_model_without_a_chamber_sensor_has_no_chamber_temperature() -> None:
    for serial in ("01P", "01S", "030", "039", "26A"):
        assert state_after(full(chamber_temper=5), serial=serial + "0").chamber_temp is None
    assert state_after(full(chamber_temper=5)).chamber_temp is None
    assert state_after(full(chamber_temper=5), serial="00M0").chamber_temp == 5
    assert state_after(full(chamber_temper=31)).chamber_temp == 31


@pytest.mark.parametrize(
    ("bits", "storage"), [(0, Storage.none), (1, Storage.ok), (2, Storage.abnormal), (3, Storage.read_only)]
)
def test_storage_is_two_bits_of_a_number_that_may_be_negative(bits: int, storage: Storage) -> None:
    home_flag = bits << 8 | 1 << 31
    assert state_after(full(home_flag=home_flag)).storage == storage
    assert state_after(full(home_flag=home_flag - (1 << 32))).storage == storage


def test_storage_without_those_bits() -> None:
    assert state_after(status(msg=0, sdcard=True)).storage == Storage.ok
    assert state_after(status(msg=0, sdcard=False)).storage == Storage.none
    assert state_after(status(msg=0, aux="2001004")).storage == Storage.ok
    assert state_after(status(msg=0)).storage is None


def test_the_door_is_known_only_where_there_is_a_sensor() -> None:
    open_door = 1 << 23 | 1 << 8
    assert state_after(full(home_flag=open_door), serial="00M0").door_open is True
    assert state_after(full(home_flag=1 << 8), serial="00M0").door_open is False
    assert state_after(full(home_flag=1 << 8, stat="46A58008"), serial="0940").door_open is True
    assert state_after(full(home_flag=open_door, stat="46258008"), serial="0940").door_open is False
    assert state_after(full(home_flag=open_door), serial="01P0").door_open is None
    assert state_after(full(home_flag=open_door)).door_open is None


def test_developer_mode_is_told_by_the_printer_or_learnt_from_its_answers() -> None:
    assert state_after(full(fun="3EC1AFFF9CFF")).developer_mode is False
    assert state_after(full(fun="3EC18FFF9CFF")).developer_mode is True
    assert state_after(full(fun="1" * 40)).developer_mode is True
    raw = merge(first_raw("01P0"), full())
    assert read(raw).developer_mode is None
    assert read(learn(raw, obeys=False)).developer_mode is False
    assert read(merge(first_raw("01P0", obeys=True), full())).developer_mode is True
    assert read(learn(merge(raw, status(fun="3EC1AFFF9CFF")), obeys=True)).developer_mode is False


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("HS01", "hardened steel"),
        ("HH01", "hardened steel, high flow"),
        ("HE00", "stainless steel, high flow"),
        ("HU05", "tungsten carbide, TPU high flow"),
        ("HX05", "tungsten carbide"),
        ("HS99", None),
        ("stainless_steel", "stainless steel"),
        ("", None),
    ],
)
def test_nozzle_types_in_words(code: str, words: str | None) -> None:
    info = [{"id": 1, "diameter": 0.4000000059604645, "type": code}, {"id": 16, "diameter": 0.2, "type": "HS00"}]
    assert state_after(full(device={"nozzle": {"info": info}})).nozzles == (Nozzle(1, 0.4, words),)


def test_an_old_x1_has_an_object_where_others_list_nozzles() -> None:
    state = state_after(
        full(nozzle_diameter="0.6", nozzle_type="hardened_steel", device={"nozzle": {"info": {"a": 1}}})
    )
    assert state.nozzles == (Nozzle(0, 0.6, "hardened steel"),)


@pytest.mark.parametrize(("signal", "dbm"), [("-48dBm", -48), ("-90dBm", None), ("-51", -51), ("<redacted>", None)])
def test_wifi(signal: str, dbm: int | None) -> None:
    assert state_after(full(wifi_signal=signal)).wifi_dbm == dbm


# Spools.


def test_partial_reports_change_one_tray_or_one_unit_by_id() -> None:
    whole = full(ams=ams(unit(0, tray(0), tray(1)), unit(1, tray(0)), tray_exist_bits="13", ams_exist_bits="3"))
    state = state_after(whole, status(ams=ams(unit(1, {"id": "0", "remain": 12}))))
    assert [(spool.slot, spool.remaining_pct) for spool in state.spools] == [(0, 40), (1, 40), (4, 12)]
    state = state_after(whole, status(ams=ams({"id": "1", "humidity": "2"})))
    assert [one.humidity_level for one in state.units] == [None, 2]
    assert len(state.spools) == 3


def test_a_full_report_replaces_units_and_trays() -> None:
    whole = full(ams=ams(unit(0, tray(0), tray(1)), unit(1, tray(0))))
    state = state_after(whole, full(ams=ams(unit(0, {"id": "0"}, tray(1, tray_type="PETG")))))
    assert [(spool.slot, spool.loaded, spool.material_type) for spool in state.spools] == [
        (0, False, None),
        (1, True, "PETG"),
    ]


def test_a_full_report_replaces_also_where_it_repeats_a_partial_one() -> None:
    part = ams(unit(0, tray(1)))
    state = state_after(full(ams=ams(unit(0, tray(0)), unit(1, tray(0)))), status(ams=part), full(ams=part))
    assert [spool.slot for spool in state.spools] == [1]


def test_a_trays_unreadable_value_leaves_its_last_good_one() -> None:
    whole = full(ams=ams(unit(0, tray(0))))
    for report in (status, full):
        state = state_after(whole, report(ams=ams(unit(0, tray(0, remain="much", tray_color=5)))))
        assert (state.spools[0].remaining_pct, state.spools[0].color, state.faults_counted) == (40, "#FF6A13FF", 2)


@pytest.mark.parametrize(
    ("given", "loaded"),
    [
        ({"id": "0"}, False),
        ({"id": "0", "state": 0}, False),
        ({"id": "0", "state": 8}, False),
        ({"id": "0", "state": 10}, False),
        ({"id": "0", "state": 26}, False),
        ({"id": "0", "state": 9}, True),
        ({"id": "0", "state": 3}, True),
        (tray(0), True),
        (tray(0, state=11), True),
        (tray(0, state=27), True),
        (tray(0, state=2), True),
        (tray(0, state=8), False),
    ],
)
def test_empty_slots_in_all_their_spellings(given: dict[str, Any], loaded: bool) -> None:
    spool = state_after(full(ams=ams(unit(0, given), tray_exist_bits="f"))).spools[0]
    assert spool.loaded is loaded
    assert loaded or spool.material_type is None


def test_a_spool_taken_out_leaves_nothing_for_the_next_one() -> None:
    whole = full(ams=ams(unit(0, tray(0)), tray_exist_bits="1"))
    for gone in ({"id": "0"}, {"id": "0", "state": 8}):
        state = state_after(whole, status(ams=ams(unit(0, gone))), status(ams=ams(unit(0, {"id": "0", "state": 9}))))
        assert (state.spools[0].loaded, state.spools[0].spool_uuid, state.spools[0].material_type) == (True, None, None)


def test_the_bits_of_occupied_trays_count_unless_the_unit_is_still_starting() -> None:
    trays = unit(0, tray(0), tray(1))
    assert [one.loaded for one in state_after(full(ams=ams(trays, tray_exist_bits="2"))).spools] == [False, True]
    starting = ams(trays, tray_exist_bits="0", power_on_flag=False)
    assert [one.loaded for one in state_after(full(ams=starting)).spools] == [True, True]
    started = ams(trays, tray_exist_bits="0", power_on_flag=True)
    assert [one.loaded for one in state_after(full(ams=started)).spools] == [False, False]
    heated = ams(unit(128, tray(0)), tray_exist_bits="ffff")
    assert [one.loaded for one in state_after(full(ams=heated)).spools] == [False]
    heated = ams(unit(128, tray(0)), tray_exist_bits="10000")
    assert [one.loaded for one in state_after(full(ams=heated)).spools] == [True]


def test_units_go_when_their_bit_goes_but_not_while_the_printer_starts() -> None:
    whole = full(ams=ams(unit(0, tray(0)), unit(1, tray(0)), unit(128, tray(0)), ams_exist_bits="13"))
    assert [one.ams_id for one in state_after(whole).units] == [0, 1, 128]
    assert [one.ams_id for one in state_after(whole, status(ams={"ams_exist_bits": "11"})).units] == [0, 128]
    starting = full(ams=ams(ams_exist_bits="0", power_on_flag=False))
    assert [one.ams_id for one in state_after(whole, starting).units] == [0, 1, 128]


def test_what_remains_is_believed_only_of_spools_with_a_chip_while_detection_is_on() -> None:
    def remaining(home_flag: int = 1 << 7, info: str = "1001", **fields: Any) -> int | None:
        units = ams(unit(0, tray(0, **fields), info=info))
        return state_after(full(home_flag=home_flag, ams=units)).spools[0].remaining_pct

    assert remaining() == 40
    assert remaining(remain=0) == 0
    assert remaining(remain=0, info="1002") is None  # an AMS Lite does not measure
    assert remaining(remain=-1) is None
    assert remaining(tray_uuid=ZERO_UUID, remain=100) is None
    assert remaining(home_flag=0) is None
    assert remaining(remain=250) is None


def test_slots_are_numbered_for_the_first_two_units_only() -> None:
    state = state_after(full(ams=ams(unit(1, tray(3)), unit(2, tray(0)), unit(128, tray(0)), unit(16, tray(1)))))
    assert [(one.ams_id, one.tray_id, one.slot) for one in state.spools] == [
        (1, 3, 7),
        (2, 0, None),
        (16, 1, None),
        (128, 0, None),
    ]


def test_external_spools() -> None:
    old, new = tray(254, remain=77), tray(255, tray_type="PETG")
    state = state_after(full(vt_tray=old))
    assert [(one.ams_id, one.tray_id, one.slot, one.loaded, one.remaining_pct) for one in state.spools] == [
        (255, 0, None, True, None)
    ]
    state = state_after(full(vt_tray=old, vir_slot=[new]))
    assert [(one.ams_id, one.material_type) for one in state.spools] == [(255, "PETG")]
    state = state_after(full(vir_slot=[tray(254, tray_type=""), new]))
    assert [(one.ams_id, one.loaded) for one in state.spools] == [(254, False), (255, True)]
    assert state_after(full(vir_slot=[tray(254)])).spools[0].ams_id == 255
    assert state_after(full(vir_slot=[tray(254)]), serial="0940").spools[0].ams_id == 254
    two_nozzles = status(device={"extruder": {"state": 2}})
    assert state_after(full(vir_slot=[tray(254)]), two_nozzles).spools[0].ams_id == 254


@pytest.mark.parametrize(
    ("color", "shown"),
    [
        ("de4343ff", "#DE4343FF"),
        ("DE4343", "#DE4343FF"),
        ("#DE434380", "#DE434380"),
        ("", None),
        ("GGGGGGGG", None),
        ("١١١١١١١١", None),
        (0xDE4343, None),
    ],
)
def test_colors(color: object, shown: str | None) -> None:
    assert state_after(full(ams=ams(unit(0, tray(0, tray_color=color))))).spools[0].color == shown


@pytest.mark.parametrize(
    ("tray_now", "place"),
    [("0", (0, 0)), ("6", (1, 2)), (3, (0, 3)), ("254", (255, 0)), ("255", None), ("129", (129, 0)), ("999", None)],
)
def test_where_filament_comes_from(tray_now: object, place: tuple[int, int] | None) -> None:
    assert state_after(full(ams=ams(unit(0, tray(0)), tray_now=tray_now))).feeding == place


def test_an_a2l_counts_from_the_first_tray_of_its_own_unit() -> None:
    assert state_after(full(ams=ams(unit(16, tray(2)), tray_now="2"))).feeding == (16, 2)


@pytest.mark.parametrize(
    ("snow", "place"),
    [
        (0xFFFF, None),
        (0xFEFF, None),
        (0xFF00, (255, 0)),
        (0xFE00, (254, 0)),
        (259, (1, 3)),
        (32768, (128, 0)),
        (3, (0, 3)),
    ],
)
def test_where_filament_comes_from_with_two_nozzles(snow: int, place: tuple[int, int] | None) -> None:
    extruder = {"state": 274, "info": [{"id": 0, "snow": 7}, {"id": 1, "snow": snow}]}
    assert state_after(full(device={"extruder": extruder}, ams=ams(tray_now="1"))).feeding == place


def test_what_kind_of_unit_it_is() -> None:
    version = {
        "info": {
            "command": "get_version",
            "module": [
                {"name": "ota", "sw_ver": "01.05.00.00", "project_name": "N2S"},
                {"name": "ams_f1/0"},
                {"name": "n3f/1"},
                {"name": "n3s/x"},
                7,
            ],
        }
    }
    units = full(ams=ams(unit(0, tray(0)), unit(1), unit(2, info="142023"), unit(128)))
    state = state_after(units, version)
    assert [one.kind for one in state.units] == ["AMS Lite", "AMS 2 Pro", "AMS 2 Pro", "AMS HT"]
    assert (state.model, state.firmware, state.faults_counted) == ("A1", "01.05.00.00", 2)


def test_a_reading_of_nothing_means_no_sensor() -> None:
    bare = unit(0, info="1001", humidity="0", humidity_raw="0", temp="0.0", dry_time=0)
    lite = unit(1, info="1002", humidity="5", humidity_raw="9", temp="20.0")
    first, second = state_after(full(ams=ams(bare, lite))).units
    assert (first.humidity_level, first.humidity_percent, first.temperature, first.drying_minutes) == (
        None,
        None,
        None,
        0,
    )
    assert (second.humidity_level, second.humidity_percent, second.temperature) == (None, None, None)


# Faults.


def test_health_messages_are_replaced_whole_and_padding_skipped() -> None:
    listed = full(
        hms=[{"attr": 0x03000100, "code": 0x00010007}, {"attr": 0, "code": 5}, {"attr": 0x05000500, "code": 0}]
    )
    fault = state_after(listed).faults[0]
    assert (fault.code, fault.severity) == ("0300-0100-0001-0007", Severity.fatal)
    assert fault.url is not None and fault.url.endswith("hmscode/0300_0100_0001_0007")
    assert len(state_after(listed).faults) == 1
    assert state_after(listed, status(bed_temper=5)).faults == (fault,)
    assert state_after(listed, status(hms=[])).faults == ()
    one_broken = state_after(listed, status(hms=[3, {"attr": 0x03000100, "code": 0x00020007}]))
    assert [one.code for one in one_broken.faults] == ["0300-0100-0002-0007"]


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (0x05004004, "0500-4004", "busy"),
        (0x03008015, "0300-8015", "external spool"),
        (0x07028011, "0702-8011", "run out"),
        (0x12008011, "1200-8011", "run out"),
        (0x18018011, "1801-8011", "run out"),
        (0x07FF8011, "07FF-8011", "external spool"),
        (0x05024007, "0502-4007", "Developer Mode"),
        (0x0C001234, "0C00-1234", "maker's page"),
    ],
)
def test_errors_have_words_of_our_own_where_they_matter(number: int, code: str, words: str) -> None:
    fault = state_after(full(print_error=number)).faults[0]
    assert fault.code == code
    assert words in fault.message


def test_messages_that_healthy_printers_show_for_months_are_not_severe() -> None:
    hms = [{"attr": 83887360, "code": 65543}, {"attr": 83887616, "code": 131184}]
    assert [one.severity for one in state_after(full(hms=hms)).faults] == [Severity.common, Severity.info]


# Recorded printers, read by eye.


def recorded(name: str) -> list[dict[str, Any]]:
    path = CAPTURES / name
    if not path.exists():
        pytest.skip(f"no recorded report {name} on this machine")
    document = json.loads(path.read_text())
    if "message" in document:
        return [document["message"], *recorded_version("A1MINI-get_version.json")]
    report = document.get("pushall") or {"print": document["push_all"]}
    version = document["get_version"]
    return [report, version if "info" in version else {"info": version}]


def recorded_version(name: str) -> list[dict[str, Any]]:
    return [json.loads((CAPTURES / name).read_text())["message"]]


RECORDED: dict[str, dict[str, Any]] = {
    "A1MINI-pushall-idle.json": {
        "state": "idle", "progress_percent": 0, "nozzle_temp": 27.21875, "nozzle_target": 0, "bed_temp": 26.53125,
        "chamber_temp": None, "active_nozzle": 0, "storage": "ok", "developer_mode": None, "job_name": None,
        "submission_id": None, "feeding": None, "model": "A1 mini", "firmware": "01.07.02.00", "door_open": None,
        "nozzles": (Nozzle(0, 0.4, "stainless steel"),), "faults": (), "speed_level": 2,
    },
    "MOCK-A1.json": {
        "state": "idle", "progress_percent": 0, "nozzle_temp": 27.8125, "bed_temp": 29.75, "chamber_temp": None,
        "wifi_dbm": -48, "storage": "ok", "model": "A1", "firmware": "01.05.00.00", "feeding": None,
    },
    "P1P.json": {
        "state": "failed", "progress_percent": 0, "remaining_minutes": None, "layers_printed": 1, "total_layers": 70,
        "nozzle_temp": 21.25, "bed_temp": 19.84375, "chamber_temp": None, "wifi_dbm": -53, "feeding": (0, 0),
        "job_name": "Fidget Collection", "submission_id": None, "model": "P1P", "firmware": "01.07.00.00",
        "cancelled": False, "nozzles": (Nozzle(0, 0.4, "hardened steel"),),
    },
    "MOCK-X1CMULTIAMS.json": {
        "state": "finished", "progress_percent": 100, "remaining_minutes": 0, "layers_printed": 480,
        "total_layers": 480, "nozzle_temp": 26, "nozzle_target": 0, "bed_temp": 23, "chamber_temp": 25,
        "active_nozzle": 0, "door_open": True, "developer_mode": False, "submission_id": "702384465", "plate": 1,
        "job_name": "Garden Hose Healer: Male fitting", "feeding": None, "model": "X1 Carbon", "wifi_dbm": -66,
        "firmware": "01.09.00.01", "nozzles": (Nozzle(0, 0.4, "hardened steel"),), "stage": None,
    },
    "H2D.json": {
        "state": "printing", "stage": "cleaning the nozzle", "progress_percent": 0, "remaining_minutes": 115,
        "layers_printed": 0, "total_layers": 26, "nozzle_temp": 264, "nozzle_target": 225, "bed_temp": 100,
        "bed_target": 100, "chamber_temp": 48, "active_nozzle": 0, "developer_mode": False, "door_open": False,
        "submission_id": "690732217", "plate": 1, "feeding": (128, 0), "model": "H2D", "firmware": "01.01.02.07",
        "nozzles": (Nozzle(0, 0.4, "hardened steel"), Nozzle(1, 0.4, "hardened steel, high flow")), "wifi_dbm": -55,
    },
    "MOCK-P2S.json": {
        "state": "printing", "stage": "printing", "progress_percent": 64, "remaining_minutes": 62,
        "layers_printed": 170, "total_layers": 305, "nozzle_temp": 254, "nozzle_target": 255, "bed_temp": 70,
        "bed_target": 70, "chamber_temp": 47, "door_open": False, "developer_mode": False, "submission_id": None,
        "job_name": "Rear Dry Pod AMS 2 PRO", "feeding": (0, 3), "model": "P2S", "storage": "ok", "wifi_dbm": -68,
    },
    "MOCK-H2S.json": {
        "state": "printing", "stage": "printing", "progress_percent": 42, "remaining_minutes": 78,
        "layers_printed": 24, "total_layers": 75, "nozzle_temp": 275, "nozzle_target": 275, "bed_temp": 105,
        "chamber_temp": 60, "submission_id": "465293773", "feeding": (0, 0), "model": "H2S", "wifi_dbm": -44,
    },
    "MOCK-X2D.json": {
        "state": "printing", "progress_percent": 98, "remaining_minutes": 2, "layers_printed": 129,
        "total_layers": 140, "nozzle_temp": 250, "nozzle_target": 250, "bed_temp": 70, "chamber_temp": 38,
        "active_nozzle": 1, "storage": "none", "plate": 3, "feeding": (0, 1), "model": "X2D", "wifi_dbm": -72,
        "submission_id": "904240393", "firmware": "01.01.00.00",
    },
}  # fmt: skip

# (ams_id, tray_id, loaded, material, colour, remaining %, whether the chip was read)
RECORDED_SPOOLS: dict[str, list[tuple[int, int, bool, str | None, str | None, int | None, bool]]] = {
    "A1MINI-pushall-idle.json": [
        (0, 0, True, "PLA", "#DE4343FF", None, True),
        (0, 1, True, "PLA", "#918669FF", None, True),
        (0, 2, True, "PETG", "#D6ABFF80", None, True),
        (0, 3, True, "PLA", "#000000FF", None, True),
        (255, 0, True, "PLA", "#161616FF", None, False),
    ],
    "MOCK-A1.json": [
        (0, 0, True, "PLA", "#76D9F4FF", None, False),
        (0, 1, True, "PLA", "#FFF144FF", None, False),
        (0, 2, True, "PLA", "#FF80FFFF", None, False),
        (0, 3, True, "PLA", "#0ACC38FF", None, False),
        (255, 0, True, "PLA", "#FFFFFFFF", None, False),
    ],
    "MOCK-X1CMULTIAMS.json": [
        (0, 0, True, "PLA", "#000000FF", 93, True),
        (0, 1, True, "PLA", "#7D6556FF", 100, True),
        (0, 2, True, "PLA", "#4D3324FF", 100, True),
        (0, 3, True, "PLA", "#AE835BFF", 83, True),
        (1, 0, True, "ABS", "#D32941FF", 21, True),
        (1, 1, True, "ABS", "#489FDFFF", 20, True),
        (1, 2, True, "ABS", "#FFFFFFFF", 71, True),
        (1, 3, True, "ABS", "#87909AFF", 100, True),
        (2, 0, False, None, None, None, False),
        (2, 1, True, "ABS", "#FF6A13FF", 100, True),
        (2, 2, True, "ABS", "#789D4AFF", 62, True),
        (2, 3, True, "ABS", "#000000FF", 100, True),
        (128, 0, True, "PA-CF", "#000000FF", 100, True),
        (255, 0, False, None, None, None, False),
    ],
    "H2D.json": [
        (0, 0, True, "PLA", "#FFFFFFFF", 47, True),
        (0, 1, True, "PLA", "#000000FF", 35, True),
        (0, 2, True, "PLA", "#DE4343FF", 82, True),
        (0, 3, True, "PETG", "#000000FF", 26, True),
        (128, 0, True, "PA-GF", "#000000FF", 100, True),
        (254, 0, False, None, None, None, False),
        (255, 0, False, None, None, None, False),
    ],
    "MOCK-P2S.json": [
        (0, 0, True, "PLA", "#FFFFFFFF", 41, True),
        (0, 1, True, "PLA", "#000000FF", 39, True),
        (0, 2, True, "PLA", "#000000FF", None, False),
        (0, 3, True, "PETG", "#FFFFFFFF", None, False),
        (255, 0, False, None, None, None, False),
    ],
    "MOCK-H2S.json": [
        (0, 0, True, "ABS", "#FFFFFFFF", None, False),
        (0, 1, False, None, None, None, False),
        (0, 2, False, None, None, None, False),
        (0, 3, False, None, None, None, False),
        (255, 0, False, None, None, None, False),
    ],
    "MOCK-X2D.json": [
        (0, 0, True, "PLA", "#161616FF", None, False),
        (0, 1, True, "PETG", "#161616FF", None, False),
        (0, 2, True, "PLA", "#FFFFFFFF", None, False),
        (0, 3, True, "ABS", "#161616FF", None, False),
        (254, 0, False, None, None, None, False),
        (255, 0, False, None, None, None, False),
    ],
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_printers_read_as_by_eye(name: str) -> None:
    state = state_after(*recorded(name))
    assert state.known
    assert {attribute: getattr(state, attribute) for attribute in RECORDED[name]} == RECORDED[name]


@pytest.mark.parametrize("name", RECORDED_SPOOLS)
def test_recorded_spools_read_as_by_eye(name: str) -> None:
    found = [
        (
            one.ams_id,
            one.tray_id,
            one.loaded,
            one.material_type,
            one.color,
            one.remaining_pct,
            one.spool_uuid is not None,
        )
        for one in state_after(*recorded(name)).spools
    ]
    assert found == RECORDED_SPOOLS[name]


def test_recorded_units_read_as_by_eye() -> None:
    units = state_after(*recorded("MOCK-X1CMULTIAMS.json")).units
    assert [(one.ams_id, one.kind, one.humidity_level, one.humidity_percent) for one in units] == [
        (0, "AMS", 5, 8),
        (1, "AMS", 5, 4),
        (2, "AMS 2 Pro", 4, 9),
        (128, "AMS HT", 5, 8),
    ]
    assert [(one.temperature, one.drying_minutes) for one in units] == [(26.2, 0), (25.4, 0), (65.0, 583), (45.2, 0)]
    assert [one.nozzle for one in state_after(*recorded("H2D.json")).units] == [1, 0]
    assert [one.kind for one in state_after(*recorded("MOCK-A1.json")).units] == ["AMS Lite"]


def test_recorded_small_reports_of_an_h2d() -> None:
    messages = recorded("H2D.json")
    document = json.loads((CAPTURES / "H2D.json").read_text())
    assert state_after(*messages, status(**document["push_door_opened"])).door_open is True
    assert state_after(*messages, status(**document["push_door_closed"])).door_open is False
    left = state_after(*messages, status(**document["push_left_extruder"]))
    assert (left.active_nozzle, left.nozzle_temp, left.nozzle_target, left.feeding) == (1, 40, 0, None)
    assert state_after(*messages, status(**document["push_alt_nozzle_info"])).nozzles == (
        Nozzle(0, 0.2, "stainless steel"),
        Nozzle(1, 0.6, "tungsten carbide"),
    )


def test_the_recorded_start_of_a_p2s_shows_the_old_print_at_first_and_the_cancelling_late() -> None:
    path = CAPTURES / "sequences" / "p2s_start_pause_stop.json"
    if not path.exists():
        pytest.skip("no recorded sequence on this machine")
    raw = merge(first_raw("22E0"), full())
    seen = []
    for event in json.loads(path.read_text())["events"]:
        raw = merge(raw, {"print": event["print"]})
        state = read(raw)
        seen.append((str(state.state), state.job_name, state.print_error, state.cancelled))
    old, name = "Tremendous Snaget-Gaaris", "ams"
    assert seen == [
        ("finished", old, None, False),
        ("finished", old, None, False),
        ("finished", name, None, False),
        ("printing", name, None, False),
        ("paused", name, "0500-803C", False),
        ("paused", name, "0500-803C", False),
        ("failed", name, None, False),
        ("failed", name, None, False),
        ("failed", name, "0300-400C", True),
    ]


# Anything at all.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
PLAUSIBLE = st.sampled_from(
    [0, 1, -1, 255, 254, 128, 0xFFFF, 2**31, 2**64, "0", "3", "255", "f", "RUNNING", "FAILED", "#", "AB" * 16, 1e309]
)
TRAY = st.dictionaries(
    st.sampled_from(["id", "state", "tray_type", "tray_color", "remain", "tray_uuid", "nozzle_temp_min"]),
    PLAUSIBLE | JSON,
)
UNIT = st.dictionaries(st.sampled_from(["id", "info", "humidity", "temp"]), PLAUSIBLE | JSON) | st.builds(
    lambda number, trays: {"id": number, "tray": trays}, PLAUSIBLE, st.lists(TRAY, max_size=3) | JSON
)
AMS = st.builds(
    lambda units, rest: {"ams": units, **rest},
    st.lists(UNIT, max_size=3) | JSON,
    st.dictionaries(
        st.sampled_from(["tray_exist_bits", "ams_exist_bits", "power_on_flag", "tray_now"]), PLAUSIBLE | JSON
    ),
)
DEVICE = st.dictionaries(
    st.sampled_from(["bed", "bed_temp", "ctc", "extruder", "nozzle"]),
    JSON
    | st.builds(
        lambda info, state: {"info": info, "state": state}, st.lists(TRAY, max_size=3) | JSON, PLAUSIBLE | JSON
    ),
)
SECTIONS = {
    "ams": AMS,
    "device": DEVICE,
    "vir_slot": st.lists(TRAY, max_size=3),
    "vt_tray": TRAY,
    "hms": st.lists(TRAY),
}
SCALARS = [
    "gcode_state", "mc_percent", "mc_remaining_time", "layer_num", "stg_cur", "print_error", "fail_reason",
    "subtask_name", "subtask_id", "gcode_file", "nozzle_temper", "bed_temper", "home_flag", "aux", "stat", "fun",
    "sdcard", "wifi_signal", "nozzle_diameter", "nozzle_type", "3D", "msg", "chamber_temper",
]  # fmt: skip
REPORT = st.builds(
    lambda plain, sections: {"print": {"command": "push_status", **plain, **sections}},
    st.dictionaries(st.sampled_from(SCALARS), PLAUSIBLE | JSON, max_size=12),
    st.fixed_dictionaries({}, optional={name: content | JSON for name, content in SECTIONS.items()}),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(REPORT | JSON | st.builds(lambda module: {"info": {"command": "get_version", "module": module}}, JSON)))
def test_nothing_a_printer_says_raises(messages: list[Any]) -> None:
    raw = Raw()
    for message in messages:
        raw = merge(raw, message)
        assert isinstance(read(raw), PrinterState)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_make_decoding_raise(payload: bytes) -> None:
    decode(payload)


@settings(max_examples=60, deadline=None)
@given(st.lists(REPORT, min_size=1, max_size=4))
def test_hearing_the_same_again_changes_nothing(messages: list[Any]) -> None:
    raw = Raw()
    for message in messages:
        raw = merge(raw, message)
        assert read(merge(raw, message)) == read(raw)


@settings(max_examples=60, deadline=None)
@given(st.lists(REPORT, min_size=1, max_size=5), st.sampled_from(["", "01P0", "00M0", "0940"]))
def test_what_is_worked_out_again_is_all_that_a_change_touches(messages: list[Any], serial: str) -> None:
    raw = first_raw(serial)
    for message in messages:
        raw = merge(raw, message)
        facts, shown = dict(raw.facts), dict(raw.shown)
        for work_out in steps(EVERYTHING):
            work_out(facts, shown)
        assert shown == raw.shown


@settings(max_examples=25, deadline=None)
@given(st.lists(REPORT, min_size=2, max_size=5))
def test_a_state_once_read_never_changes(messages: list[Any]) -> None:
    raw = merge(first_raw("0940"), full())
    seen = []
    for message in messages:
        state = read(raw)
        seen.append((state, repr(state)))
        raw = merge(raw, message)
    assert [repr(state) for state, _ in seen] == [words for _, words in seen]


def test_one_nozzle_is_known_from_the_serial_number_alone() -> None:
    assert state_after(full(), serial="01P0").active_nozzle == 0
    assert state_after(full(), serial="0940").active_nozzle is None


WHOLE = full(
    gcode_state="RUNNING", mc_percent=31, mc_remaining_time=55, layer_num=9, total_layer_num=80, stg_cur=0,
    bed_temper=60.5, bed_target_temper=60, chamber_temper=33, subtask_name="x", subtask_id="7", print_error=0x0500C011,
    gcode_file="/data/Metadata/plate_2.gcode", fun="3EC18FFF9CFF", stat="46A58008", sdcard=True, spd_lvl=2,
    hms=[{"attr": 0x03000100, "code": 0x00010007}], wifi_signal="-50dBm", nozzle_diameter="0.4", nozzle_type="HS01",
    ams=ams(unit(0, tray(0), {"id": "1"}, info="1001"), unit(128, tray(0)), tray_exist_bits="10001", tray_now="0"),
    vir_slot=[tray(255, tray_type="")],
    device={"extruder": {"state": 1, "info": [{"id": 0, "temp": 220 << 16 | 219, "snow": 0}]}, "bed_temp": 4587590},
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=len(WHOLE["print"]), max_size=len(WHOLE["print"])), st.integers(0, 5))
def test_a_report_in_parts_reads_as_the_whole(places: list[int], whole_at: int) -> None:
    parts: list[dict[str, Any]] = [status() for _ in range(6)]
    for (key, value), place in zip(WHOLE["print"].items(), places, strict=True):
        if key not in ("command", "msg"):
            parts[place]["print"][key] = value
    parts[whole_at]["print"]["msg"] = 0
    assert state_after(*parts, serial="00M0") == state_after(WHOLE, serial="00M0")


def test_a_report_nested_as_deep_as_can_be_is_taken_twice() -> None:
    deep: object = 1
    for _ in range(1010):
        deep = [deep]
    raw = merge(first_raw(), full(device={"junk": deep}))
    again: object = 1
    for _ in range(1010):
        again = [again]
    assert read(merge(raw, full(device={"junk": again}))) == read(raw)
