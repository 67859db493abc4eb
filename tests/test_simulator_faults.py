"""Each way a simulated printer can misbehave, shown to happen: on the model alone, or to paho and ftplib over TLS."""

from __future__ import annotations

import contextlib
import ftplib
import json
import math
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from simulator import (
    AmsKind,
    AmsUnit,
    Faults,
    Machine,
    Plate,
    Replay,
    ReplayEvent,
    Script,
    SimulatedPrinter,
    Spool,
    Step,
    StorageFaults,
    make_sliced_file,
    models,
)
from simulator.__main__ import main
from simulator.commands import NOT_VERIFIED
from simulator.faults import is_full_report
from tests.printer_client import (
    CODE,
    SERIAL,
    Client,
    command,
    files,
    machine,
    mapped,
    start_fields,
    start_message,
    status,
    storage,
    trusting,
)

SEQUENCES = Path(__file__).parents[1].parent / "shared" / "captures" / "bambu" / "sequences"
PUSHALL = {"pushing": {"command": "pushall", "sequence_id": "1"}}


@pytest.fixture
def printer() -> Iterator[SimulatedPrinter]:
    """Its time stands still but for `advance`."""
    with SimulatedPrinter(SERIAL, CODE, speed=0) as started:
        (started.files / "benchy.gcode.3mf").write_bytes(make_sliced_file(plates=[Plate(1, 30)]))
        yield started


@pytest.fixture
def client(printer: SimulatedPrinter) -> Iterator[Client]:
    listening = Client(printer).listen()
    yield listening
    listening.close()


def until(true: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def started(model: str = "P1S", *, minutes: float = 30, **changed: Any) -> Machine:
    """A machine in the middle of printing `benchy`."""
    made = machine(model, Plate(1, minutes, [("PLA", "#FF0000", 12.0, 4.0)]), **changed)
    made.handle(mapped(made))
    made.advance(600)
    assert status(made)["gcode_state"] == "RUNNING"
    return made


# Starting.


def test_a_start_can_be_refused_with_any_code() -> None:
    made = machine(faults=Faults(refuse_start=0x0500400E))
    ack = made.handle(mapped(made))[0]["print"]
    assert (ack["result"], ack["err_code"]) == ("fail", 0x0500400E)
    assert (status(made)["gcode_state"], status(made)["print_error"]) == ("IDLE", 0x0500400E)
    assert [start.verdict for start in made.starts] == ["refused"]


@pytest.mark.parametrize(("model", "cancels"), [("A1 mini", True), ("P1S", False)])
def test_a_start_on_a_busy_a1_mini_cancels_the_print_under_way(model: str, cancels: bool) -> None:
    made = started(model)
    ack = made.handle(mapped(made, subtask_id="4712"))[0]["print"]
    assert (ack["result"], ack["err_code"]) == ("fail", 0x05004004)
    first = status(made)
    assert (first["gcode_state"], first["subtask_id"], first["print_error"]) == (
        "FAILED" if cancels else "RUNNING",
        "4711",
        0x05004004,
    )
    made.advance(6)
    assert status(made)["print_error"] == (0x0300400C if cancels else 0x05004004)


def test_any_printer_can_be_made_to_cancel_so() -> None:
    made = started("X1C", faults=Faults(busy_start_cancels=True))
    made.handle(mapped(made))
    assert status(made)["gcode_state"] == "FAILED"


def test_without_developer_mode_a_refusal_may_be_a_bare_echo_or_nothing() -> None:
    echoing = machine(developer_mode=False, faults=Faults(unsigned_answer="bare echo"))
    sent = command("pause", param="")
    assert echoing.handle(sent) == [sent] and echoing.handle(sent) == [sent]
    assert status(echoing)["hms"] == [{"attr": NOT_VERIFIED[0], "code": NOT_VERIFIED[1]}]
    assert [f"{number:08X}" for number in NOT_VERIFIED] == ["05000500", "00010007"]

    silent = machine("H2S", developer_mode=False, faults=Faults(unsigned_answer="silence"))
    assert silent.handle(mapped(silent)) == []
    assert [start.verdict for start in silent.starts] == ["refused"]
    assert silent.handle(PUSHALL)


@pytest.mark.parametrize("ending", ["finish", "refusal", "late refusal", "power cut"])
def test_a_file_left_on_the_card_starts_by_itself_hours_later(ending: str) -> None:
    made = machine(faults=Faults(left_file_starts_after_seconds=4 * 3600))
    if ending == "refusal":
        made.faults.refuse_start = 0x05004003
    if ending == "late refusal":
        made.faults.refuse_after_ack = 0x0500C010
    made.handle(mapped(made))
    made.faults.refuse_start = made.faults.refuse_after_ack = None
    if ending == "finish":
        made.advance(1803)
    if ending == "power cut":
        made.advance(600)
        made.power_cycle()
    made.advance(10)
    quiet = status(made)["gcode_state"]
    assert quiet == ("FINISH" if ending == "finish" else "IDLE")
    made.advance(4 * 3600 - 30)
    assert status(made)["gcode_state"] == quiet
    made.advance(60)
    ghost = status(made)
    assert (ghost["gcode_state"], ghost["subtask_name"], ghost["subtask_id"]) == ("PREPARE", "benchy", "0")
    assert len(made.starts) == 1


def test_a_file_that_was_deleted_does_not_start_by_itself() -> None:
    held = {"benchy": make_sliced_file()}
    made = machine(faults=Faults(left_file_starts_after_seconds=60), open_file=lambda path: files(**held)(path))
    made.handle(mapped(made))
    made.finish_now()
    held.clear()
    made.advance(10_000)
    assert status(made)["gcode_state"] == "FINISH"


def test_the_file_of_a_start_that_nobody_answered_is_left_too() -> None:
    made = machine(faults=Faults(left_file_starts_after_seconds=60, silent_refusal=True))
    assert made.handle(mapped(made)) == []
    made.advance(70)
    assert status(made)["gcode_state"] == "PREPARE"


# Answers and reports on their way.


def test_acks_come_late_and_the_effect_does_not_wait(printer: SimulatedPrinter, client: Client) -> None:
    printer.faults.ack_delay_seconds = 30
    sequence = client.send("print", "project_file", **start_fields())
    until(lambda: printer.starts)
    printer.advance(29)
    heard = client.until_state("PREPARE")
    assert not [one for one in heard if one["print"].get("sequence_id") == sequence]
    printer.advance(2)
    late = client.until(lambda message: message["print"].get("sequence_id") == sequence)[-1]["print"]
    assert (late["command"], late["result"]) == ("project_file", "success")


def test_a_power_cut_loses_what_was_on_its_way() -> None:
    made = machine(faults=Faults(ack_delay_seconds=30, report_delay_seconds=20))
    assert made.handle(mapped(made)) == [] and made.handle(PUSHALL) == []
    made.advance(10)
    made.power_cycle()
    made.advance(60)
    assert made.outbox.take_overdue() == []


def test_acks_come_twice(client: Client, printer: SimulatedPrinter) -> None:
    printer.faults.duplicate_acks = True
    sequence = client.send("print", "project_file", **start_fields())
    for _ in range(2):
        ack = client.until(lambda message: message["print"].get("command") == "project_file")[-1]["print"]
        assert (ack["sequence_id"], ack["result"]) == (sequence, "success")
    assert [start.verdict for start in printer.starts] == ["accepted"]


def test_reports_come_twice_and_answers_once(client: Client, printer: SimulatedPrinter) -> None:
    printer.faults.duplicate_reports = True
    client.send("pushing", "pushall")
    client.send("info", "get_version")
    heard = client.until(lambda message: "info" in message)
    assert len(heard) == 3 and heard[0] == heard[1]


def test_reports_come_late_say_what_was_then_and_keep_their_order(client: Client, printer: SimulatedPrinter) -> None:
    printer.faults.report_delay_seconds = 20
    client.send("pushing", "pushall")
    assert client.ask("info", "get_version")["module"]
    printer.press_start("benchy.gcode.3mf")
    printer.faults.report_delay_seconds = 0
    printer.advance(19)
    assert client.hears_nothing()
    printer.advance(2)
    first, *later = client.until_state("PREPARE")
    assert first["print"]["gcode_state"] == "IDLE" and first["print"]["subtask_name"] == ""
    assert not [one for one in later if one["print"].get("gcode_state") == "IDLE"]


def test_a_share_of_the_reports_is_lost_the_same_ones_for_the_same_seed() -> None:
    def heard(seed: int) -> list[bool]:
        made = machine(seed=seed, faults=Faults(lose_reports=0.4))
        return [bool(made.handle(PUSHALL)) for _ in range(200)]

    assert heard(1) == heard(1) != heard(2)
    assert 90 <= sum(heard(1)) <= 150
    made = machine(faults=Faults(lose_reports=1.0))
    assert made.handle(PUSHALL) == [] and made.handle(mapped(made))


@pytest.mark.parametrize("damage", ["cut in half", "garbage", "trailing NUL", "invalid UTF-8"])
def test_reports_arrive_damaged(damage: Any, client: Client, printer: SimulatedPrinter) -> None:
    whole = client.pushall()
    printer.faults.damage = (damage,)
    while not client.payloads.empty():
        client.payloads.get()
    client.send("pushing", "pushall")
    spoiled = client.payloads.get(timeout=5)
    match damage:
        case "cut in half":
            assert spoiled.startswith(b'{"print":{') and not spoiled.endswith(b"}")
        case "garbage":
            with pytest.raises(ValueError):
                json.loads(spoiled)
        case "trailing NUL":
            assert json.loads(spoiled.removesuffix(b"\0"))["print"].keys() == whole.keys()
            assert spoiled.endswith(b"}}\0")
        case "invalid UTF-8":
            with pytest.raises(UnicodeDecodeError):
                spoiled.decode()
            readable = json.loads(spoiled.decode(errors="replace"))["print"]
            assert readable.keys() == whole.keys() | {"name"} and readable["gcode_state"] == "IDLE"


def test_damage_strikes_a_share_of_the_messages_the_same_for_the_same_seed() -> None:
    def sent(seed: int) -> list[bytes]:
        faults = Faults(damage=("cut in half", "garbage", "trailing NUL"), damage_share=0.5)
        Machine(SERIAL, seed=seed, faults=faults)
        return [faults.bytes_to_send(b'{"print":{"command":"push_status"}}') for _ in range(100)]

    assert sent(1) == sent(1) != sent(2)
    assert 30 <= sent(1).count(b'{"print":{"command":"push_status"}}') <= 70
    assert {len(payload) for payload in sent(1)} == {17, 35, 36}


# The connection.


def test_a_connection_ends_in_the_middle_of_a_packet(printer: SimulatedPrinter) -> None:
    with socket.create_connection((printer.host, printer.mqtt_port), 5) as plain:
        secured = trusting(printer).wrap_socket(plain)
        secured.sendall(b"\x10\x1f\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01a\x00\x04bblp\x00\x08" + CODE.encode())
        assert secured.recv(4) == b"\x20\x02\x00\x00"
        printer.faults.break_off()
        heard = b""
        with contextlib.suppress(ConnectionResetError, ssl.SSLError):
            while part := secured.recv(4096):
                heard += part
    assert heard[0] == 0x30 and len(heard) > 10 and len(heard) < 2 + heard[1]


def test_a_client_over_the_limit_may_be_told_that_the_server_is_unavailable(
    printer: SimulatedPrinter, client: Client
) -> None:
    printer.faults.connection_limit = 1
    printer.faults.limit_answer = "server unavailable"
    turned_away = Client(printer)
    assert turned_away.connect() == "Server unavailable"
    turned_away.close()
    assert client.pushall()["gcode_state"] == "IDLE" and len(printer.connections) == 1


def test_a_black_hole_accepts_connections_and_says_nothing(printer: SimulatedPrinter) -> None:
    printer.faults.black_hole = True
    with socket.create_connection((printer.host, printer.mqtt_port), 5) as plain:
        plain.settimeout(0.2)
        with pytest.raises(TimeoutError):
            trusting(printer).wrap_socket(plain)
    printer.faults.black_hole = False
    again = Client(printer).listen()
    assert again.pushall()["gcode_state"] == "IDLE"
    again.close()


def test_in_a_black_hole_a_live_connection_falls_silent_and_what_was_told_is_done_when_it_closes(
    printer: SimulatedPrinter, client: Client
) -> None:
    client.pushall()
    printer.faults.black_hole = True
    client.send("info", "get_version")
    sequence = client.send("print", "project_file", **start_fields())
    printer.swap_spool(0, 0, None)
    assert client.hears_nothing() and client.mqtt.is_connected()
    assert printer.starts == []
    printer.faults.black_hole = False
    heard = client.until(lambda message: message.get("print", {}).get("sequence_id") == sequence)
    assert [start.verdict for start in printer.starts] == ["refused"]
    assert not [one for one in heard if "ams" in one.get("print", {})]


def test_a_half_open_connection_says_nothing_over_a_power_cycle_and_a_new_one_works(
    printer: SimulatedPrinter, client: Client
) -> None:
    client.pushall()
    printer.faults.connection_limit = 1
    printer.faults.abandon_connections()
    printer.restart()
    client.send("print", "project_file", **start_fields())
    again = Client(printer).listen()
    assert again.pushall()["gcode_state"] == "IDLE"
    printer.press_start("benchy.gcode.3mf")
    again.until(lambda message: message["print"].get("subtask_name") == "benchy")
    again.close()
    assert client.hears_nothing() and client.mqtt.is_connected()
    assert printer.starts == []
    printer.stop()
    assert client.ended.get(timeout=5)


@pytest.mark.parametrize(("fault", "words"), [("expired", "expired"), ("not yet valid", "not yet valid")])
def test_to_a_client_with_a_wrong_clock_the_certificate_is_of_another_time(fault: Any, words: str) -> None:
    with SimulatedPrinter(SERIAL, CODE, faults=Faults(wrong_certificate=fault)) as wrong:
        for port in (wrong.mqtt_port, wrong.ftps_port):
            plain = socket.create_connection((wrong.host, port), 5)
            with plain, pytest.raises(ssl.SSLCertVerificationError, match=words):
                trusting(wrong).wrap_socket(plain)


def test_what_is_said_drips_in_small_pieces_and_comes_whole(printer: SimulatedPrinter, client: Client) -> None:
    whole = client.pushall()
    size = len(json.dumps({"print": whole}))
    printer.faults.drip_bytes_per_second = 20_000
    began = time.monotonic()
    assert client.pushall().keys() == whole.keys()
    assert time.monotonic() - began > 0.5 * size / 20_000
    printer.faults.drip_bytes_per_second = 10
    client.send("pushing", "pushall")
    assert client.hears_nothing()
    printer.faults.drip_bytes_per_second = None
    assert client.until(is_full_report)
    client.ask("print", "pause", param="")


def test_a_full_report_can_come_behind_the_changes_or_never(printer: SimulatedPrinter, client: Client) -> None:
    assert client.pushall()["gcode_state"] == "IDLE"
    printer.faults.full_report_delay_seconds = 20
    client.send("pushing", "pushall")
    assert client.ask("info", "get_version")
    printer.press_start("benchy.gcode.3mf")
    printer.advance(5)
    parts = client.until_state("PREPARE")
    assert not any(is_full_report(part) for part in parts)
    printer.advance(20)
    assert client.until(is_full_report)[-1]["print"]["gcode_state"] == "IDLE"
    printer.faults.full_report_delay_seconds = math.inf
    client.send("pushing", "pushall")
    printer.advance(10_000)
    assert not any(is_full_report(part) for part in client.until_state("FINISH"))


@pytest.mark.parametrize("model", list(models))
def test_a_full_report_is_told_from_a_part_on_every_model(model: str) -> None:
    made = started(model)
    assert is_full_report(made.report(full=True))
    made.advance(60)
    assert not is_full_report(made.report(full=False))


def test_a_door_that_is_shut_refuses_and_those_inside_stay(printer: SimulatedPrinter, client: Client) -> None:
    printer.faults.shut_door()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((printer.host, printer.mqtt_port), 5)
    assert client.pushall()
    printer.faults.open_door()
    again = Client(printer).listen()
    assert again.pushall()
    again.close()
    printer.faults.shut_door()
    printer.restart()
    Client(printer).listen().close()


def test_noise_comes_for_packets_the_same_for_the_same_seed(printer: SimulatedPrinter) -> None:
    with socket.create_connection((printer.host, printer.mqtt_port), 5) as plain:
        secured = trusting(printer).wrap_socket(plain)
        secured.sendall(b"\x10\x1f\x00\x04MQTT\x04\xc2\x00\x3c\x00\x01a\x00\x04bblp\x00\x08" + CODE.encode())
        assert secured.recv(4) == b"\x20\x02\x00\x00"
        expected = Machine(SERIAL).faults.chance.randbytes(64)
        printer.faults.babble()
        assert secured.recv(64) == expected


def test_a_certificate_changes_for_new_connections_and_back(printer: SimulatedPrinter, client: Client) -> None:
    def shown(port: int) -> bytes | None:
        with socket.create_connection((printer.host, port), 5) as plain:
            return trusting(printer).wrap_socket(plain).getpeercert(binary_form=True)

    own = shown(printer.mqtt_port)
    assert own == shown(printer.ftps_port)
    printer.faults.wrong_certificate = "other authority"
    printer.change_certificate()
    for port in (printer.mqtt_port, printer.ftps_port):
        with pytest.raises(ssl.SSLCertVerificationError):
            shown(port)
    assert client.pushall()
    printer.faults.wrong_certificate = None
    printer.change_certificate()
    assert shown(printer.mqtt_port) == shown(printer.ftps_port) == own


# Scripts.


def test_a_script_is_followed_in_the_printers_own_time(printer: SimulatedPrinter, client: Client) -> None:
    script = Script.of(
        [
            Step(130, do="drop_connection"),
            Step(100, {"storage.black_hole": True}, "finish_now"),
            Step(10, {"lag_finish_seconds": 60.0, "damage": ["cut in half"], "damage_share": 0.0}),
            Step(120, do="pause"),
        ]
    )
    printer.follow(script)
    printer.advance(9)
    assert printer.faults.lag_finish_seconds == 0
    printer.advance(2)
    assert (printer.faults.lag_finish_seconds, printer.faults.damage) == (60.0, ("cut in half",))
    client.ask("print", "project_file", **start_fields())
    printer.advance(100)
    client.until_state("PREPARE")
    client.until_state("FINISH")
    assert printer.faults.storage.black_hole
    printer.advance(50)
    assert client.ended.get(timeout=5)
    assert printer.machine.now == pytest.approx(161)


def test_a_script_goes_on_over_a_restart_of_its_own(printer: SimulatedPrinter, client: Client) -> None:
    printer.follow(Script.of([Step(600, do="restart"), Step(700, do="press_start", arguments=["benchy.gcode.3mf"])]))
    client.ask("print", "project_file", **start_fields())
    printer.advance(650)
    assert client.ended.get(timeout=5)
    again = Client(printer).listen()
    assert again.pushall()["gcode_state"] == "IDLE"
    printer.advance(60)
    again.until_state("PREPARE")
    again.close()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[1]",
        "[{}]",
        '[{"at": "1"}]',
        '[{"at": -1}]',
        '[{"at": Infinity}]',
        '[{"at": 1, "set": {"chance": 1}}]',
        '[{"at": 1, "set": {"storage.x": 1}}]',
        '[{"at": 1, "do": "report"}]',
        '[{"at": 1, "when": 2}]',
    ],
)
def test_a_file_that_is_no_script_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text(text)
    with pytest.raises(ValueError):
        Script.read(tmp_path / "script.json")
    with pytest.raises(SystemExit):
        main(["--script", str(tmp_path / "script.json")])


def test_a_script_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "script.json").write_text(
        '[{"at": 60, "set": {"mute": true}}, {"at": 5.5, "do": "fail", "with": [50348044]}]'
    )
    assert Script.read(tmp_path / "script.json").steps == (
        Step(5.5, {}, "fail", [50348044]),
        Step(60.0, {"mute": True}, None, []),
    )


# Printing.


def test_a_restart_in_mid_print_comes_back_idle_and_knows_nothing(printer: SimulatedPrinter, client: Client) -> None:
    client.ask("print", "project_file", **start_fields())
    printer.advance(600)
    client.until_state("RUNNING")
    printer.restart()
    assert client.ended.get(timeout=5)
    printer.advance(100_000)
    again = Client(printer).listen()
    report = again.pushall()
    again.close()
    assert (report["gcode_state"], report["subtask_id"], report["mc_percent"]) == ("IDLE", "0", 0)


@pytest.mark.parametrize("model", ["P1S", "X1C"])
def test_with_recovery_the_print_goes_on_where_it_was_under_its_own_ids(model: str) -> None:
    made = started(model, faults=Faults(recover_after_seconds=120))
    before = status(made)
    made.power_cycle()
    assert (status(made)["gcode_state"], status(made)["subtask_id"]) == ("IDLE", "0")
    made.advance(119)
    assert status(made)["gcode_state"] == "IDLE"
    made.advance(2)
    warming = status(made)
    assert (warming["gcode_state"], warming["subtask_id"]) == (models[model].warms_up_as, "4711")
    assert before["mc_percent"] - 1 <= warming["mc_percent"] <= before["mc_percent"]
    made.advance(1800)
    assert status(made)["gcode_state"] == "FINISH"
    spool = made.units[0].spools[0]
    assert spool is not None and spool.grams_left == pytest.approx(1000.0 - 12.0)


def test_a_print_that_had_only_been_accepted_is_not_recovered_and_a_busy_printer_recovers_nothing() -> None:
    made = machine(faults=Faults(recover_after_seconds=5))
    made.handle(mapped(made))
    made.power_cycle()
    made.advance(60)
    assert status(made)["gcode_state"] == "IDLE"
    other = started(faults=Faults(recover_after_seconds=60))
    other.power_cycle()
    other.press_start("something else")
    other.advance(100)
    assert status(other)["subtask_name"] == "something else"


def test_a_health_message_flaps() -> None:
    made = machine(faults=Faults(flapping_hms=(0x03000100, 0x00010007), flap_seconds=5))
    made.show_hms([(0x05000500, 0x00010007)])
    seen = []
    for _ in range(8):
        seen.append(len(status(made)["hms"]))
        made.advance(2.5)
    assert seen == [1, 1, 2, 2, 1, 1, 2, 2]


def test_a_swapped_spool_has_no_name_until_its_tag_is_read(printer: SimulatedPrinter, client: Client) -> None:
    printer.faults.tag_reading_seconds = 15
    client.ask("print", "project_file", **start_fields())
    printer.advance(600)
    before = client.pushall()["ams"]
    printer.swap_spool(0, 0, None)
    gone = client.until(lambda message: "ams" in message["print"])[-1]["print"]["ams"]
    assert (gone["ams"][0]["tray"], gone["tray_exist_bits"]) == ([{"id": "0"}], "e")
    printer.swap_spool(0, 0, Spool("PETG", "00FF00FF"))
    reading = client.pushall()["ams"]
    assert reading["ams"][0]["tray"][0] == {"id": "0"}
    assert (reading["tray_exist_bits"], reading["tray_reading_bits"], reading["tray_read_done_bits"]) == ("f", "1", "e")
    printer.advance(20)
    after = client.pushall()
    tray = after["ams"]["ams"][0]["tray"][0]
    assert (tray["tray_type"], tray["tray_color"], after["gcode_state"]) == ("PETG", "00FF00FF", "RUNNING")
    assert tray["tray_uuid"] != before["ams"][0]["tray"][0]["tray_uuid"] and after["ams"]["tray_reading_bits"] == "0"


def test_a_modern_printer_shows_a_tag_being_read_by_its_state() -> None:
    made = machine("P2S", faults=Faults(tag_reading_seconds=15))
    made.swap_spool(0, 2, Spool())
    assert status(made)["ams"]["ams"][0]["tray"][2] == {"id": "2", "state": 5}


def test_when_a_spool_runs_out_a_backup_slot_takes_over_and_the_print_goes_on() -> None:
    spools: list[Spool | None] = [Spool(grams_left=6.0), Spool("PETG"), Spool(color="000000FF"), Spool(grams_left=500)]
    coarse, fine = (machine(spools=[Spool(**vars(one)) if one else None for one in spools]) for _ in range(2))
    for made in (coarse, fine):
        made.handle(mapped(made))
    seen: dict[int, str] = {}
    while status(fine)["gcode_state"] != "FINISH":
        fine.advance(5)
        seen.setdefault(status(fine)["stg_cur"], status(fine)["ams"]["tray_now"])
        if status(fine)["stg_cur"] == 4:
            assert (status(fine)["gcode_state"], status(fine)["ams_status"]) == ("RUNNING", 1 << 8)
    coarse.advance(fine.now)
    assert status(coarse) | {"sequence_id": ""} == status(fine) | {"sequence_id": ""}
    assert seen[0] == "0" and seen[4] == "3"
    left = [spool.grams_left for spool in fine.units[0].spools if spool is not None]
    assert left == pytest.approx([0.0, 1000.0, 1000.0, 494.0])
    assert 1800 + 60 <= fine.now <= 1800 + 60 + 10


def test_what_is_left_of_a_filament_change_passes_however_little_it_is() -> None:
    made = machine(spools=[Spool(grams_left=6.0), Spool()])
    made.handle(mapped(made))
    while status(made)["stg_cur"] != 4:
        made.advance(5)
    assert made.run is not None
    made.run.change_seconds_left = 1e-9
    made.advance(1e-6)
    assert made.run.change_seconds_left == 0


@pytest.mark.parametrize(
    "why", ["the option is off", "another colour", "another material", "empty too", "the other nozzle", "external"]
)
def test_without_a_backup_slot_the_print_pauses(why: str) -> None:
    other = Spool()
    if why == "another colour":
        other.color = "000000FF"
    if why == "another material":
        other.material = "PETG"
    if why == "empty too":
        other.grams_left = 0.0
    units = [AmsUnit(AmsKind.PRO_2, 0, [Spool(grams_left=6.0)]), AmsUnit(AmsKind.PRO_2, 1, [other])]
    units[1].extruder = int(why == "the other nozzle")
    made = machine("H2D" if why == "the other nozzle" else "P1S", units=units, external=Spool(grams_left=6.0))
    if why == "the option is off":
        made.handle(command("print_option", auto_switch_filament=False))
        assert status(made)["home_flag"] & 1 << 10 == 0
    made.handle(start_message(use_ams=False) if why == "external" else mapped(made))
    made.advance(3600)
    report = status(made)
    code = 0x07FF8011 if why == "external" else 0x07008011
    assert (report["gcode_state"], report["stg_cur"], report["print_error"]) == ("PAUSE", 6, code)


def test_a_wrong_clock_shows_in_reports_and_in_file_times(printer: SimulatedPrinter) -> None:
    year = 365 * 86400
    faults = Faults(clock_off_seconds=-10 * year)
    right, wrong = machine("P2S"), machine("P2S", faults=faults)
    assert status(right)["t_utc"] - status(wrong)["t_utc"] == 10 * year * 1000
    wrong.show_hms([(0x03000100, 0x00010007)])
    assert status(wrong)["hms"][0]["ts_unix"] == "20160104000000"
    printer.faults.clock_off_seconds = -10 * year
    with storage(printer) as card:
        card.put("p1.gcode.3mf", b"x")
        assert card.voidcmd("MDTM p1.gcode.3mf")[4:8] == str(datetime.now(UTC).year - 10)


# Storage.


BYTES = bytes(range(256)) * 400


def test_a_command_can_be_refused_with_any_reply(printer: SimulatedPrinter) -> None:
    with storage(printer) as card:
        for line in ("553 Could not create file.", "552 Disk full.", "550 No such directory."):
            printer.faults.storage.refuse = {"STOR": line}
            with pytest.raises(ftplib.error_perm, match=line[:3]):
                card.put("p1.gcode.3mf", BYTES)
        printer.faults.storage.refuse = {"STOR": "421 Busy.", "DELE": "550 Delete operation failed."}
        with pytest.raises(ftplib.error_temp, match="421"):
            card.put("p1.gcode.3mf", BYTES)
        with pytest.raises(ftplib.error_perm, match="550"):
            card.delete("benchy.gcode.3mf")
    assert [path.name for path in printer.files.iterdir()] == ["benchy.gcode.3mf"]


def test_the_reply_says_426_and_the_file_is_complete(printer: SimulatedPrinter) -> None:
    printer.faults.storage.closing_reply = "426 Failure reading network stream."
    with storage(printer) as card:
        with pytest.raises(ftplib.error_temp, match="426"):
            card.put("p1.gcode.3mf", BYTES)
        assert card.size("p1.gcode.3mf") == len(BYTES)
    assert (printer.files / "p1.gcode.3mf").read_bytes() == BYTES


def test_the_reply_says_226_and_the_file_is_short(printer: SimulatedPrinter) -> None:
    printer.faults.storage.keep_bytes = 4096
    with storage(printer) as card:
        assert card.put("p1.gcode.3mf", BYTES).startswith("226")
        assert card.size("p1.gcode.3mf") == 4096
        assert card.put("small", b"x" * 10).startswith("226") and card.size("small") == 10


def test_the_closing_reply_comes_late_or_never(printer: SimulatedPrinter) -> None:
    printer.faults.storage = StorageFaults(closing_reply_after_seconds=0.15)
    with storage(printer) as card:
        began = time.monotonic()
        assert card.put("p1.gcode.3mf", BYTES).startswith("226")
        assert time.monotonic() - began >= 0.15
    printer.faults.storage.closing_reply_after_seconds = math.inf
    card = storage(printer)
    card.sock.settimeout(0.2)  # type: ignore[union-attr]
    with pytest.raises(TimeoutError):
        card.put("p2.gcode.3mf", BYTES)
    card.close()
    until(lambda: (printer.files / "p2.gcode.3mf").read_bytes() == BYTES)


def test_an_encrypted_data_channel_is_never_answered_and_a_clear_one_works(printer: SimulatedPrinter) -> None:
    printer.faults.storage.hangs_on_encrypted_data = True
    card = storage(printer)
    card.timeout = 0.2
    with pytest.raises(TimeoutError):
        card.put("p1.gcode.3mf", BYTES)
    card.close()
    with storage(printer) as card:
        card.prot_c()
        card.voidcmd("TYPE I")
        plain, _ = ftplib.FTP.ntransfercmd(card, "STOR p1.gcode.3mf")
        plain.sendall(BYTES)
        plain.close()
        assert card.voidresp().startswith("226") and card.size("p1.gcode.3mf") == len(BYTES)


def test_an_upload_is_read_slowly(printer: SimulatedPrinter) -> None:
    printer.faults.storage.bytes_per_second = 400_000
    with storage(printer) as card:
        began = time.monotonic()
        assert card.put("p1.gcode.3mf", BYTES).startswith("226")
        assert 0.2 <= time.monotonic() - began < 2
    assert (printer.files / "p1.gcode.3mf").read_bytes() == BYTES


def test_an_upload_ends_in_mid_stream_with_both_channels(printer: SimulatedPrinter) -> None:
    printer.faults.storage.drop_after_bytes = 50_000
    card = storage(printer)
    with pytest.raises((EOFError, OSError)):
        card.put("p1.gcode.3mf", BYTES)
    card.close()
    until(lambda: 50_000 <= (printer.files / "p1.gcode.3mf").stat().st_size < len(BYTES))
    printer.faults.storage.drop_after_bytes = None
    with storage(printer) as card:
        assert card.put("p1.gcode.3mf", BYTES).startswith("226")


def test_a_storage_that_is_a_black_hole_accepts_and_says_nothing(printer: SimulatedPrinter) -> None:
    printer.faults.storage.black_hole = True
    with socket.create_connection((printer.host, printer.ftps_port), 5) as plain:
        plain.settimeout(0.2)
        with pytest.raises(TimeoutError):
            trusting(printer).wrap_socket(plain)
    printer.faults.storage.black_hole = False
    with storage(printer) as card:
        assert card.nlst() == ["benchy.gcode.3mf"]


# Replays.


def replayed(*events: tuple[float, dict[str, Any]], model: str | None = None) -> Replay:
    return Replay.of([ReplayEvent(at, message) for at, message in events], model)


def pushed(**fields: Any) -> dict[str, Any]:
    return {"print": {"command": "push_status", "msg": 1, "sequence_id": "7", **fields}}


def test_a_replay_says_what_was_captured_at_its_times_and_nothing_else(
    printer: SimulatedPrinter, client: Client
) -> None:
    client.pushall()
    ack = {"print": {"command": "stop", "sequence_id": "20002", "result": "SUCCESS"}}
    first, last = pushed(gcode_state="RUNNING", mc_percent=40), pushed(mc_percent=41)
    replay = replayed((25.0, last), (2.0, ack), (10.0, first))
    assert replay.seconds == 25.0
    printer.replay(replay)
    printer.advance(9.9)
    assert client.messages.get(timeout=5) == ack
    printer.advance(0.2)
    assert client.messages.get(timeout=5) == first
    printer.advance(14)
    printer.swap_spool(0, 0, None)
    client.send("print", "project_file", **start_fields())
    client.send("pushing", "pushall")
    full = client.messages.get(timeout=5)["print"]
    assert (full["msg"], full["gcode_state"], full["mc_percent"], full["subtask_name"]) == (0, "RUNNING", 40, "")
    assert len(full["ams"]["ams"][0]["tray"]) == 4 and printer.starts == []
    printer.advance(100)
    assert client.messages.get(timeout=5) == last
    assert client.hears_nothing()
    printer.restart()
    again = Client(printer).listen()
    assert again.pushall()["gcode_state"] == "IDLE"
    again.close()


def test_a_replay_runs_at_the_printers_speed() -> None:
    with SimulatedPrinter("22E00A123456789", CODE, "P2S", speed=100) as fast:
        client = Client(fast).listen()
        began = time.monotonic()
        fast.replay(replayed((0.0, pushed(layer_num=1)), (30.0, pushed(layer_num=2))))
        client.until(lambda message: message["print"].get("layer_num") == 2)
        assert 0.25 <= time.monotonic() - began < 2
        client.close()


def test_faults_strike_a_replay_too() -> None:
    made = machine(faults=Faults(duplicate_reports=True))
    made.play(replayed((1.0, pushed(layer_num=1)), (2.0, {"print": {"command": "stop", "sequence_id": "9"}})))
    made.advance(5)
    assert len(made.outbox.take_overdue()) == 3


def test_units_and_trays_of_a_replay_go_by_id_into_the_full_report() -> None:
    made = machine()
    ams = {"ams": [{"id": "0", "tray": [{"id": "2", "remain": 33}]}], "tray_now": "2"}
    made.play(replayed((1.0, pushed(ams=ams))))
    made.advance(2)
    shown = made.handle(PUSHALL)[0]["print"]["ams"]
    assert [tray["id"] for tray in shown["ams"][0]["tray"]] == ["0", "1", "2", "3"]
    assert (shown["ams"][0]["tray"][2]["remain"], shown["ams"][0]["tray"][2]["tray_type"]) == (33, "PLA")
    assert shown["tray_now"] == "2"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("a.json", "[]"),
        ("a.json", "{}"),
        ("a.json", '{"events": []}'),
        ("a.json", '{"events": [1]}'),
        ("a.json", '{"events": [{"print": {}}]}'),
        ("a.json", '{"events": [{"ms": -5, "print": {}}]}'),
        ("a.json", '{"events": [{"ms": NaN, "print": {}}]}'),
        ("a.json", '{"events": [{"ms": 5, "phase": "x"}]}'),
        ("a.jsonl", ""),
        ("a.jsonl", '{"print": {}}\nrubbish'),
        ("a.jsonl", '["print"]'),
    ],
)
def test_a_file_that_is_no_capture_is_an_error(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError):
        Replay.read(tmp_path / name)


def test_every_captured_sequence_can_be_played(printer: SimulatedPrinter, client: Client) -> None:
    if not SEQUENCES.is_dir():
        pytest.skip("the captures are not here")
    for path in sorted(SEQUENCES.iterdir()):
        replay = Replay.read(path)
        printer.replay(replay)
        printer.advance(replay.seconds + 1)
        for event in replay.events:
            assert client.messages.get(timeout=5) == event.message, path.name
        assert client.messages.empty()


def test_the_captured_start_of_a_p2s_is_played_with_its_timings() -> None:
    path = SEQUENCES / "p2s_start_pause_stop.json"
    if not path.is_file():
        pytest.skip("the captures are not here")
    replay = Replay.read(path)
    assert replay.model == "P2S" and replay.seconds > 29
    made = machine("P2S")
    made.play(replay)
    told = []
    for _ in range(60):
        made.advance(0.5)
        told += [(made.now, message["print"].get("gcode_state")) for message in made.outbox.take_overdue()]
    changes = [(at, state) for at, state in told if state]
    assert [state for _, state in changes] == ["FINISH", "FINISH", "RUNNING", "PAUSE", "FAILED", "FAILED", "FAILED"]
    assert [at for at, _ in changes] == [1.5, 5.0, 8.0, 9.0, 25.0, 26.0, 30.0]
    assert made.handle(PUSHALL)[0]["print"]["print_error"] == 0x0300400C


def test_by_hand_it_replays_a_file_to_whoever_listens_and_announces_itself(tmp_path: Path) -> None:
    capture = tmp_path / "capture.json"
    events = [{"ms": 0, **pushed(gcode_state="PAUSE")}, {"ms": 500, **pushed(gcode_state="RUNNING")}]
    capture.write_text(json.dumps({"_meta": {"model": "A1 mini fw 01.07"}, "events": events}))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(10)
        address = f"127.0.0.1:{receiver.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "simulator", "--replay", str(capture), "--announce", address, "--speed", "50"],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert b"DevModel.bambu.com: N1\r\n" in receiver.recv(4096)
            assert process.stdout is not None
            *_, host, port, _, serial, code, ca_file = [process.stdout.readline() for _ in range(2)][1].split()
            away = SimulatedPrinter(serial, code, "A1 mini", host=host, mqtt_port=int(port))
            trusted = ssl.create_default_context(cafile=ca_file)
            trusted.check_hostname = False
            trusted.verify_flags &= ~ssl.VERIFY_X509_STRICT
            client = Client(away, code, verify=trusted).listen()
            assert [state["print"]["gcode_state"] for state in client.until_state("RUNNING")] == ["PAUSE", "RUNNING"]
            client.close()
            away.stop()
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "arguments", [["--replay", "/nowhere"], ["--replay", __file__], ["--announce", "127.0.0.1:x"], ["--model", "Z9"]]
)
def test_by_hand_a_wrong_argument_is_said_and_ends_it(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "error:" in capsys.readouterr().err
