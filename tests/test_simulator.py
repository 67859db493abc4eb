"""The simulated printer, spoken to as a client speaks to a real one: paho over TLS, ftplib over implicit TLS."""

from __future__ import annotations

import contextlib
import ftplib
import io
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from simulator import (
    AmsKind,
    AmsUnit,
    Authority,
    Faults,
    NotReadyError,
    Plate,
    SimulatedPrinter,
    Spool,
    make_sliced_file,
    make_unsliced_project,
    models,
)
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

CAPTURES = Path(__file__).parents[1].parent / "shared" / "captures" / "bambu"


@pytest.fixture
def printer() -> Iterator[SimulatedPrinter]:
    with SimulatedPrinter(SERIAL, CODE, speed=600) as started:
        yield started


@pytest.fixture
def client(printer: SimulatedPrinter) -> Iterator[Client]:
    listening = Client(printer).listen()
    yield listening
    listening.close()


def test_the_certificate_names_the_serial_and_nothing_else(printer: SimulatedPrinter) -> None:
    for port in (printer.mqtt_port, printer.ftps_port):
        plain = socket.create_connection((printer.host, port), 5)
        with trusting(printer).wrap_socket(plain, server_hostname=SERIAL) as secured:
            leaf = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
            assert secured.version() == "TLSv1.2"
        assert [name.value for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == [SERIAL]
        assert list(leaf.extensions) == []


@pytest.mark.parametrize("fault", ["other serial", "other authority"])
def test_a_wrong_certificate_can_be_shown(fault: Any) -> None:
    with SimulatedPrinter(SERIAL, CODE, faults=Faults(wrong_certificate=fault)) as wrong:
        with socket.create_connection((wrong.host, wrong.mqtt_port), 5) as plain:
            if fault == "other authority":
                with pytest.raises(ssl.SSLCertVerificationError):
                    trusting(wrong).wrap_socket(plain)
                return
            with trusting(wrong).wrap_socket(plain) as secured:
                shown = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
        assert shown.subject.rfc4514_string() != f"CN={SERIAL}"


def test_printers_of_one_authority_share_a_ca_file_and_another_authority_has_its_own() -> None:
    with SimulatedPrinter(SERIAL, CODE) as one, SimulatedPrinter("01P00A000000002", CODE) as two:
        assert one.ca_file == two.ca_file and one.ca_pem == one.ca_file.read_text()
        with SimulatedPrinter("01P00A000000003", CODE, authority=Authority()) as other:
            assert other.ca_pem != one.ca_pem


def test_a_wrong_access_code_is_refused_at_both_doors(printer: SimulatedPrinter) -> None:
    intruder = Client(printer, code="87654321")
    assert intruder.connect() == "Not authorized"
    intruder.close()
    assert [(login.username, login.verdict) for login in printer.connections] == [("bblp", "refused")]
    with pytest.raises(ftplib.error_perm, match="530"):
        storage(printer, code="87654321")


@pytest.mark.parametrize("model", models)
def test_every_model_answers_pushall_and_get_version_in_its_own_shape(model: str) -> None:
    row = models[model]
    with SimulatedPrinter(f"{row.serial_prefix}00A123456789", CODE, model) as shaped:
        client = Client(shaped).listen()
        report = client.pushall()
        modules = client.ask("info", "get_version")["module"]
        client.close()
    assert report["gcode_state"] == "IDLE" and report["command"] == "push_status"
    assert ("msg" in report) is row.sends_msg and report.get("msg", 0) == 0
    assert report["stg_cur"] == (0 if row.classic else -1)
    assert ("device" in report) is not row.classic and ("fun" in report) is not row.classic
    units = report["ams"]["ams"]
    assert len(units) == 1 and [tray["id"] for tray in units[0]["tray"]] == ["0", "1", "2", "3"]
    ota = modules[0]
    assert ota["name"] == "ota" and ota["sn"] == shaped.serial
    if row.old_versions:
        assert ota["project_name"] in row.slice_ids
    else:
        assert ota["product_name"] == row.shown_name
    if row.classic:
        assert report["vt_tray"]["id"] == "254" and report["chamber_temper"] == 5
    else:
        assert int(report["fun"], 16) & 1 << 29 == 0
        assert len(report["device"]["extruder"]["info"]) == row.nozzles
        assert report["device"]["extruder"]["state"] & 15 == row.nozzles
        assert [tray["id"] for tray in report["vir_slot"]] == (["254", "255"] if row.nozzles == 2 else ["255"])
        assert ("ctc" in report["device"]) is row.chamber_sensor
        assert row.name == "A2L" or units[0]["id"] == "0"
    names = {module["name"] for module in modules}
    assert {"A2L": "ams_f1/16", "A1": "ams_f1/0", "H2D": "n3f/0", "P1S": "ams/0"}.get(model, "ota") in names


@pytest.mark.parametrize(
    ("model", "file", "part"),
    [
        ("P1P", "P1P.json", "push_all"),
        ("A1", "MOCK-A1.json", "pushall"),
        ("A1 mini", "A1MINI-pushall-idle.json", "message"),
        ("X1C", "MOCK-X1CMULTIAMS.json", "pushall"),
        ("P2S", "MOCK-P2S.json", "pushall"),
        ("H2S", "MOCK-H2S.json", "pushall"),
        ("H2D", "H2D.json", "push_all"),
        ("X2D", "MOCK-X2D.json", "pushall"),
    ],
)
def test_the_full_report_has_the_keys_and_types_of_a_captured_one(model: str, file: str, part: str) -> None:
    if not CAPTURES.is_dir():
        pytest.skip("the captures are not here")
    captured = json.loads((CAPTURES / file).read_text())[part]
    captured = captured.get("print", captured)
    made = status(machine(model))
    assert made.keys() == captured.keys()
    kinds = {key: (type(made[key]), type(captured[key])) for key in made}
    wrong = {key: pair for key, pair in kinds.items() if pair[0] is not pair[1] and set(pair) != {int, float}}
    assert wrong == {}
    trays = [tray for unit in captured["ams"]["ams"] for tray in unit["tray"] if len(tray) > 2]
    assert made["ams"]["ams"][0]["tray"][0].keys() == trays[0].keys()
    for spot in ("vt_tray", "vir_slot"):
        if isinstance(captured.get(spot), dict):
            assert made[spot].keys() - {"total_len"} == captured[spot].keys() - {"total_len", "cols", "ctype"} | (
                made[spot].keys() & {"cols", "ctype"}
            )


def test_a_print_is_uploaded_started_and_reported_to_its_end(printer: SimulatedPrinter, client: Client) -> None:
    data = make_sliced_file(plates=[Plate(1, 8, [("PLA", "#FF0000", 120.0, 40.0)])])
    with storage(printer) as card:
        assert card.welcome == "220 (vsFTPd 3.0.3)"
        assert card.put("benchy.gcode.3mf", data).startswith("226")
        assert card.size("benchy.gcode.3mf") == len(data) == len((printer.files / "benchy.gcode.3mf").read_bytes())
    before = client.pushall()
    ack = client.ask("print", "project_file", **start_fields())
    assert (ack["command"], ack["result"], ack["reason"]) == ("project_file", "success", "success")
    first = client.until(lambda message: "subtask_name" in message["print"])[-1]["print"]
    assert first["subtask_name"] == "benchy" and "gcode_state" not in first and first["msg"] == 1
    heard = [message["print"] for message in client.until_state("FINISH", seconds=8)]
    states = [report["gcode_state"] for report in heard if "gcode_state" in report]
    assert states == ["PREPARE", "RUNNING", "FINISH"]
    percents = [report["mc_percent"] for report in heard if "mc_percent" in report]
    assert percents == sorted(percents) and percents[-1] == 100 and len(set(percents)) > 3
    assert {2, 14, 1} <= {report.get("stg_cur") for report in heard}
    after = client.pushall()
    assert (after["subtask_id"], after["mc_remaining_time"], after["layer_num"]) == ("4711", 0, 16)
    remains = [report["ams"]["ams"][0]["tray"][0]["remain"] for report in (before, after)]
    assert remains[0] == 100 and 85 <= remains[1] <= 88
    assert [(start.verdict, start.subtask_id) for start in printer.starts] == [("accepted", "4711")]
    with storage(printer) as card:
        card.delete("benchy.gcode.3mf")
    assert not (printer.files / "benchy.gcode.3mf").exists()


def test_a_big_file_arrives_whole(printer: SimulatedPrinter) -> None:
    data = bytes(range(256)) * 80_000
    with storage(printer) as card:
        card.put("big.bin", data)
        assert card.size("big.bin") == len(data)
        lines: list[str] = []
        card.retrlines("LIST", lines.append)
    assert len(lines) == 1 and lines[0].startswith("-rw") and lines[0].endswith("big.bin")
    assert (printer.files / "big.bin").read_bytes() == data


def test_a_data_channel_without_the_control_session_is_refused(printer: SimulatedPrinter) -> None:
    card = storage(printer)
    card.reuse = False
    with pytest.raises(ftplib.error_perm, match="522"):
        card.put("benchy.gcode.3mf", b"x")
    card.close()


@pytest.mark.parametrize("change", [{"storage": "none"}, {"storage": "read-only"}])
def test_a_card_that_cannot_be_written_answers_553(printer: SimulatedPrinter, change: dict[str, str]) -> None:
    printer.machine.storage = change["storage"]
    with storage(printer) as card, pytest.raises(ftplib.error_perm, match="553"):
        card.put("benchy.gcode.3mf", b"x")


def test_an_h2_without_developer_mode_refuses_uploads_and_a_p1_takes_them() -> None:
    for model, serial, refused in (("H2D", "09400A123456789", True), ("P1S", SERIAL, False)):
        with SimulatedPrinter(serial, CODE, model, developer_mode=False) as guarded, storage(guarded) as card:
            if refused:
                with pytest.raises(ftplib.error_perm, match="553"):
                    card.put("benchy.gcode.3mf", b"x")
            else:
                assert card.put("benchy.gcode.3mf", b"x").startswith("226")


def test_pause_resume_and_stop_over_the_wire(printer: SimulatedPrinter, client: Client) -> None:
    (printer.files / "benchy.gcode.3mf").write_bytes(make_sliced_file(plates=[Plate(1, 600)]))
    client.send("print", "project_file", **start_fields())
    client.until_state("RUNNING")
    assert client.ask("print", "pause", param="")["result"] == "success"
    client.until_state("PAUSE")
    assert client.ask("print", "resume", param="")["result"] == "success"
    client.until_state("RUNNING")
    assert client.ask("print", "stop", param="")["result"] == "success"
    failed = client.until_state("FAILED")[-1]["print"]
    assert "print_error" not in failed
    late = client.until(lambda message: message["print"].get("print_error", 0) != 0)[-1]["print"]
    assert late["print_error"] == 0x0300400C


def test_no_state_passes_unreported_however_fast_time_runs() -> None:
    with SimulatedPrinter(SERIAL, CODE, speed=1_000_000) as hasty:
        (hasty.files / "benchy.gcode.3mf").write_bytes(make_sliced_file(plates=[Plate(1, 30)]))
        client = Client(hasty).listen()
        client.send("print", "project_file", **start_fields())
        heard = client.until_state("FINISH")
        client.close()
    states = [message["print"]["gcode_state"] for message in heard if "gcode_state" in message["print"]]
    assert states == ["PREPARE", "RUNNING", "FINISH"]


def test_a_start_on_a_busy_printer_is_refused_and_harms_nothing(printer: SimulatedPrinter, client: Client) -> None:
    (printer.files / "benchy.gcode.3mf").write_bytes(make_sliced_file(plates=[Plate(1, 600)]))
    client.send("print", "project_file", **start_fields())
    client.until_state("RUNNING")
    ack = client.ask("print", "project_file", **start_fields(subtask_id="4712"))
    assert (ack["result"], ack["err_code"]) == ("fail", 0x05004004)
    report = client.pushall()
    assert (report["gcode_state"], report["subtask_id"], report["print_error"]) == ("RUNNING", "4711", 0x05004004)
    assert [(start.subtask_id, start.verdict) for start in printer.starts] == [
        ("4711", "accepted"),
        ("4712", "refused"),
    ]
    assert all(start.heard_at is not None for start in printer.starts)


def test_deltas_come_from_a_p1_and_whole_objects_from_an_x1() -> None:
    for model, serial, full in (("P1S", SERIAL, False), ("X1C", "00M00A123456789", True)):
        with SimulatedPrinter(serial, CODE, model, speed=0) as reporting:
            client = Client(reporting).listen()
            client.pushall()
            reporting.swap_spool(0, 2, None)
            report = client.until(lambda message: "ams" in message["print"])[-1]["print"]
            client.close()
        assert report["msg"] == (0 if full else 1)
        trays = report["ams"]["ams"][0]["tray"]
        assert [tray["id"] for tray in trays] == (["0", "1", "2", "3"] if full else ["2"])
        assert int(report["ams"]["tray_exist_bits"], 16) == 0b1011


def test_nobody_else_hears_and_a_p1_drops_who_listens_to_requests(printer: SimulatedPrinter, client: Client) -> None:
    lost = Client(printer).listen(f"device/{SERIAL.lower()}/report")
    client.pushall()
    assert lost.hears_nothing()
    curious = Client(printer)
    assert curious.connect() == "Success"
    curious.mqtt.subscribe(f"device/{SERIAL}/request")
    assert curious.ended.get(timeout=5)
    forger = Client(printer).listen()
    forger.mqtt.publish(f"device/{SERIAL}/report", b'{"print":{"gcode_state":"FINISH","command":"forged"}}')
    forger.send("info", "get_version")
    heard = client.until(lambda message: "info" in message)
    assert all(message.get("print", {}).get("command") != "forged" for message in heard)
    for other in (lost, curious, forger):
        other.close()


def test_a_mute_printer_stays_connected_and_a_dropped_one_can_be_reached_again(
    printer: SimulatedPrinter, client: Client
) -> None:
    printer.faults.mute = True
    client.send("pushing", "pushall")
    assert client.hears_nothing()
    assert client.ask("info", "get_version")["module"]
    printer.faults.mute = False
    printer.faults.drop_connection()
    assert client.ended.get(timeout=5)
    again = Client(printer).listen()
    assert again.pushall()["gcode_state"] == "IDLE"
    again.close()
    assert len(printer.connections) == 2 and printer.connections[0].ended_at is not None


def test_connections_beyond_the_limit_are_closed_before_a_word(printer: SimulatedPrinter, client: Client) -> None:
    printer.faults.connection_limit = 1
    with socket.create_connection((printer.host, printer.mqtt_port), 5) as plain:
        one_too_many = trusting(printer).wrap_socket(plain)
        with contextlib.suppress(ConnectionResetError):
            assert one_too_many.recv(1) == b""
    assert client.pushall()["gcode_state"] == "IDLE"
    assert len(printer.connections) == 1


def test_pulling_the_plug_ends_everything_and_it_comes_back_idle_on_the_same_ports(
    printer: SimulatedPrinter, client: Client
) -> None:
    (printer.files / "benchy.gcode.3mf").write_bytes(make_sliced_file(plates=[Plate(1, 600)]))
    ports = (printer.mqtt_port, printer.ftps_port)
    client.send("print", "project_file", **start_fields())
    client.until_state("RUNNING")
    silent = trusting(printer).wrap_socket(socket.create_connection((printer.host, printer.mqtt_port), 5))
    printer.pull_plug()
    assert client.ended.get(timeout=5)
    with contextlib.suppress(ConnectionResetError), silent:
        assert silent.recv(1) == b""
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((printer.host, port), 1)
    printer.plug_in()
    assert (printer.mqtt_port, printer.ftps_port) == ports
    again = Client(printer).listen()
    report = again.pushall()
    again.close()
    assert (report["gcode_state"], report["mc_percent"], report["subtask_name"]) == ("IDLE", 0, "")
    assert (printer.files / "benchy.gcode.3mf").exists()


def test_a_reboot_is_not_acknowledged_and_drops_the_link(printer: SimulatedPrinter, client: Client) -> None:
    client.send("system", "reboot")
    assert client.ended.get(timeout=5)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0", b"[1]", b'"x"', b"{", b"\xff\xfe", b'{"print":null}', b'{"print":{"command":7}}', b"[" * 100_000],
)
def test_what_is_not_a_command_is_ignored(printer: SimulatedPrinter, client: Client, payload: bytes) -> None:
    client.send_raw(payload)
    assert client.pushall()["gcode_state"] == "IDLE"


def test_a_trailing_nul_and_several_sections_in_one_message_are_understood(client: Client) -> None:
    client.send_raw(
        b'{"pushing":{"sequence_id":"0","command":"pushall"},"info":{"sequence_id":"0","command":"get_version"},'
        b'"upgrade":{"sequence_id":"0","command":"get_history"}}\0'
    )
    heard = [next(iter(client.messages.get(timeout=5))) for _ in range(3)]
    assert heard == ["print", "info", "upgrade"]


def test_time_can_be_moved_by_hand() -> None:
    with SimulatedPrinter(SERIAL, CODE, speed=0) as still:
        (still.files / "benchy.gcode.3mf").write_bytes(make_sliced_file(plates=[Plate(1, 120)]))
        client = Client(still).listen()
        client.ask("print", "project_file", **start_fields())
        still.advance(3600)
        half = client.pushall()
        assert half["gcode_state"] == "RUNNING" and 45 <= half["mc_percent"] <= 50
        still.advance(3700)
        assert client.pushall()["gcode_state"] == "FINISH"
        client.close()


def test_twenty_printers_start_and_stop_in_no_time() -> None:
    started_at = time.monotonic()
    fleet = [SimulatedPrinter(f"01P00A{number:09d}", CODE) for number in range(20)]
    for one in fleet:
        one.start()
    assert time.monotonic() - started_at < 2
    assert len({one.mqtt_port for one in fleet} | {one.ftps_port for one in fleet}) == 40
    for one in fleet:
        one.stop()
    assert not any(one.files.exists() for one in fleet)
    assert time.monotonic() - started_at < 4


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_listening() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        unlucky = SimulatedPrinter(SERIAL, CODE, ftps_port=taken.getsockname()[1])
        with pytest.raises(OSError):
            unlucky.start()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", unlucky.mqtt_port), 1)
        unlucky.stop()


def test_by_hand_it_prints_a_table_and_sigterm_ends_it_cleanly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "simulator", "--printers", "2", "--model", "A1 mini", "--seed", "3"],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert all(line.count("030") >= 1 and line.rstrip().endswith("ca.pem") for line in lines[1:])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.communicate()


def test_machines_made_and_advanced_alike_say_the_same_and_another_seed_differs() -> None:
    def life(seed: int) -> list[Any]:
        made = machine(seed=seed)
        said: list[Any] = made.handle(mapped(made))
        for _ in range(50):
            made.advance(45.5)
            said.append(made.report(full=False))
        return [*said, made.report(full=True)]

    assert life(1) == life(1)
    assert life(1) != life(2)


def test_it_does_not_matter_into_which_steps_the_time_is_cut() -> None:
    coarse, fine = machine(), machine()
    for one in (coarse, fine):
        one.handle(mapped(one))
    coarse.advance(1000)
    for _ in range(4000):
        fine.advance(0.25)
    assert status(coarse) == status(fine)


def test_the_old_state_stays_while_an_accepted_start_gets_going() -> None:
    made = machine("P2S")
    made.handle(mapped(made))
    made.advance(1900)
    assert (status(made)["gcode_state"], status(made)["layer_num"]) == ("FINISH", 60)
    made.handle(mapped(made, subtask_name="second", subtask_id="4712"))
    waiting = status(made)
    assert (waiting["gcode_state"], waiting["mc_percent"], waiting["subtask_name"]) == ("FINISH", 100, "second")
    made.advance(made.seconds_to_next_event())
    stale = status(made)
    assert (stale["gcode_state"], stale["mc_percent"], stale["layer_num"]) == ("RUNNING", 0, 60)
    made.advance(1)
    assert status(made)["layer_num"] == 0


def test_a_p2s_pauses_by_itself_and_shows_the_cancel_only_after_failed() -> None:
    made = machine("P2S")
    made.handle(mapped(made))
    made.advance(4)
    made.pause_with(0x0500803C)
    assert (status(made)["gcode_state"], status(made)["print_error"]) == ("PAUSE", 83918908)
    ack = made.handle(command("stop", param=""))[0]["print"]
    assert (ack["result"], ack["reason"]) == ("SUCCESS", "SUCCESS")
    made.advance(1)
    made.handle(command("clean_print_error"))
    assert (status(made)["gcode_state"], status(made)["print_error"], status(made)["mc_percent"]) == ("FAILED", 0, 0)
    made.advance(5)
    late = status(made)
    assert (late["print_error"], late["mc_print_error_code"], late["fail_reason"]) == (50348044, "16396", "50348044")


def test_only_the_newer_models_put_temperatures_into_device() -> None:
    for model in ("X1C", "P2S", "H2S"):
        made = machine(model)
        made.handle(mapped(made))
        made.advance(600)
        report = status(made)
        assert report["device"]["bed"]["info"]["temp"] == 65 << 16 | 65 == report["device"]["bed_temp"]
        assert report["device"]["extruder"]["info"][0]["temp"] == 220 << 16 | 220
        assert report["device"]["extruder"]["info"][0]["snow"] == 0
    made = machine("P1S")
    made.handle(mapped(made))
    made.advance(600)
    assert abs(status(made)["nozzle_temper"] - 220) < 1 and status(made)["nozzle_target_temper"] == 220


def test_two_nozzles_are_told_apart_and_the_flat_fields_show_the_left_one() -> None:
    units = [AmsUnit(AmsKind.PRO_2, 0, [Spool()]), AmsUnit(AmsKind.HT, 128, [Spool("PA-CF")], extruder=1)]
    made = machine("H2D", units=units)
    made.handle(start_message(ams_mapping=[128], ams_mapping2=[{"ams_id": 128, "slot_id": 0}]))
    made.advance(600)
    report = status(made)
    right, left = report["device"]["extruder"]["info"]
    assert (right["snow"], left["snow"], right["temp"]) == (0xFFFF, 32768, 24)
    assert (report["device"]["extruder"]["state"] >> 4) & 15 == 1 and left["temp"] == 220 << 16 | 220
    assert report["nozzle_target_temper"] == 220
    assert (report["mapping"], report["ams"]["tray_now"]) == ([32768], "128")
    assert (report["ams"]["ams_exist_bits"], report["ams"]["tray_exist_bits"]) == ("11", "10001")


def test_filament_is_taken_from_the_mapped_spools_by_weight() -> None:
    plate = Plate(1, 60, [("PLA", "#FFFFFF", 30.0, 10.0), None, ("PETG", "#000000", 60.0, 20.0)])
    made = machine(plate=plate, spools=[Spool(), Spool(), Spool("PETG")])
    made.handle(start_message(ams_mapping=[0, -1, 2]))
    made.advance(720)
    seen = set()
    for _ in range(40):
        made.advance(30)
        seen.add(status(made)["ams"]["tray_now"])
    assert seen == {"0", "2"}
    made.advance(3600)
    assert [round(spool.grams_left, 3) for spool in made.units[0].spools if spool] == [970.0, 1000.0, 940.0]
    assert [tray.get("remain") for tray in status(made)["ams"]["ams"][0]["tray"]] == [97, 100, 94, None]


def test_an_empty_spool_pauses_the_print_until_another_is_put_in() -> None:
    made = machine("A1 mini", spools=[Spool(grams_left=6.0)])
    made.handle(mapped(made))
    made.advance(3600)
    report = status(made)
    assert (report["gcode_state"], report["stg_cur"], report["print_error"]) == ("PAUSE", 6, 0x12008011)
    assert 45 <= report["mc_percent"] <= 51
    made.swap_spool(0, 0, Spool())
    made.handle(command("resume", param=""))
    made.advance(3600)
    assert status(made)["gcode_state"] == "FINISH"


def test_spools_without_a_tag_show_no_identity_and_no_remainder() -> None:
    made = machine(spools=[Spool(rfid=False), Spool()])
    first, second, *empty = status(made)["ams"]["ams"][0]["tray"]
    assert (first["remain"], first["tray_uuid"]) == (-1, "0" * 32)
    assert second["remain"] == 100 and int(second["tray_uuid"], 16) > 0
    assert empty == [{"id": "2"}, {"id": "3"}]
    made.remain_detection = False
    assert status(made)["ams"]["ams"][0]["tray"][1]["remain"] == -1
    assert status(made)["home_flag"] & 1 << 7 == 0


def test_speed_levels_change_how_long_a_print_takes() -> None:
    left = {}
    for level in ("1", "2", "4"):
        made = machine()
        made.handle(mapped(made))
        made.advance(300)
        made.handle(command("print_speed", param=level))
        made.advance(60)
        left[level] = status(made)["mc_remaining_time"]
    assert left["4"] < left["2"] < left["1"]
    assert status(made)["spd_lvl"] == 4 and status(made)["spd_mag"] == 166


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"url": "ftp://missing.gcode.3mf"}, 0x05004002),
        ({"url": "ftp://../benchy.gcode.3mf"}, 0x05004002),
        ({"url": "brtc://emmc/benchy.gcode.3mf"}, 0x05004002),
        ({"url": None}, 0x05004002),
        ({"param": "Metadata/plate_9.gcode"}, 0x05004003),
        ({"param": "../plate_1.gcode"}, 0x05004002),
        ({"url": "ftp://other.gcode.3mf"}, 0x05004037),
        ({"url": "ftp://fine.gcode.3mf"}, 0x05004038),
        ({"url": "ftp://unsliced.gcode.3mf"}, 0x05004003),
        ({"url": "ftp://rubbish.gcode.3mf"}, 0x05004003),
        ({"md5": "0" * 32}, 0x05004003),
        ({"ams_mapping": [7]}, 0x07008012),
        ({"ams_mapping": []}, 0x07008012),
        ({"ams_mapping": [254]}, 0x07008012),
    ],
)
def test_a_start_that_cannot_be_is_refused_with_the_printers_own_code(fields: dict[str, Any], code: int) -> None:
    made = machine(
        open_file=files(
            benchy=make_sliced_file(),
            other=make_sliced_file(model_id="N2S"),
            fine=make_sliced_file(nozzle_diameter="0.2"),
            unsliced=make_unsliced_project(),
            rubbish=b"PK\x03\x04 not a zip",
        )
    )
    ack = made.handle(start_message(**fields))[0]["print"]
    assert (ack["result"], ack["err_code"]) == ("fail", code)
    assert (status(made)["print_error"], status(made)["gcode_state"]) == (code, "IDLE")
    assert [(start.verdict, start.error) for start in made.starts] == [("refused", code)]
    made.handle(command("clean_print_error", subtask_id="0", print_error=code))
    assert status(made)["print_error"] == 0


@pytest.mark.parametrize("url", ["ftp://", "ftp:///", "file:///sdcard/", "file:///mnt/sdcard/", "file:///media/usb0/"])
def test_every_known_form_of_url_reaches_the_file(url: str) -> None:
    made = machine()
    assert made.handle(mapped(made, url=f"{url}benchy.gcode.3mf"))[0]["print"]["result"] == "success"


def test_without_an_ams_use_ams_is_an_error_and_the_external_spool_prints() -> None:
    made = machine(spools=[], external=Spool(rfid=False))
    assert made.handle(start_message())[0]["print"]["err_code"] == 0x07FF8012
    assert made.handle(start_message(use_ams=False, ams_mapping=[-1]))[0]["print"]["result"] == "success"
    made.advance(600)
    assert status(made)["ams"]["tray_now"] == "254"


def test_without_developer_mode_everything_readable_works_and_every_print_command_is_refused() -> None:
    old, new = machine("P1S", developer_mode=False), machine("H2S", developer_mode=False)
    for name in ("project_file", "pause", "stop", "gcode_line", "print_speed"):
        fields = start_fields() if name == "project_file" else {"param": "1"}
        echoed = old.handle(command(name, **fields))[0]["print"]
        assert echoed == {"command": name, "sequence_id": "20009", **fields, "err_code": 84033543}
        said = new.handle(command(name, **fields))[0]["print"]
        assert (said["result"], said["reason"]) == ("failed", "mqtt message verify failed")
        assert (said["err_code"], said["sequence_id"]) == (84033543, "20009")
    assert [start.verdict for start in new.starts] == ["refused"]
    assert int(status(new)["fun"], 16) & 1 << 29
    assert status(old)["gcode_state"] == "IDLE"
    for made in (old, new):
        assert made.handle({"pushing": {"command": "pushall", "sequence_id": "1"}})
        assert made.handle({"info": {"command": "get_version", "sequence_id": "1"}})


@pytest.mark.parametrize("model", ["P1S", "A1"])
def test_older_models_obey_the_programs_that_send_no_sequence_id(model: str) -> None:
    """Seen in programs that people have used with these for years; a P2S drops the same in silence."""
    made = machine(model)
    made.handle(mapped(made))
    made.advance(600)
    assert made.handle({"pushing": {"command": "pushall"}, "info": {"command": "get_version"}})
    assert made.handle({"print": {"command": "pause"}})
    assert status(made)["gcode_state"] == "PAUSE"


@pytest.mark.parametrize(
    "message",
    [
        {"print": {"command": "pause"}},
        {"print": {"command": "pause", "sequence_id": "1"}},
        {"print": {"command": "pause", "param": ""}},
        {"print": {"command": "pause", "sequence_id": 1, "param": ""}},
        {"print": {"command": "no_such_command", "sequence_id": "1"}},
        {"nonsense": {"command": "pause", "sequence_id": "1"}},
    ],
)
def test_a_command_without_sequence_id_or_param_is_dropped_in_silence(message: dict[str, Any]) -> None:
    made = machine("P2S")
    made.handle(mapped(made))
    made.advance(600)
    assert made.handle(message) == []
    assert status(made)["gcode_state"] == "RUNNING"
    assert len(made.commands) == 2


def test_the_faults_of_a_start() -> None:
    ignored = machine(faults=Faults(silent_refusal=True))
    assert ignored.handle(mapped(ignored)) == [] and ignored.starts[0].verdict == "ignored"

    stuck = machine(faults=Faults(accept_and_never_start=True))
    assert stuck.handle(mapped(stuck))[0]["print"]["result"] == "success"
    stuck.advance(100_000)
    assert (status(stuck)["gcode_state"], status(stuck)["subtask_id"]) == ("IDLE", "4711")

    late = machine(faults=Faults(lag_finish_seconds=200))
    late.handle(mapped(late))
    late.advance(201)
    assert status(late)["gcode_state"] == "IDLE"
    late.advance(2)
    assert status(late)["gcode_state"] == "PREPARE"

    refusing = machine(faults=Faults(refuse_after_ack=0x0500C010))
    assert refusing.handle(mapped(refusing))[0]["print"]["result"] == "success"
    refusing.advance(10)
    assert (status(refusing)["gcode_state"], status(refusing)["print_error"]) == ("IDLE", 0x0500C010)

    quiet = machine(faults=Faults(lose_acks=True))
    assert quiet.handle(mapped(quiet)) == []
    quiet.advance(10)
    assert status(quiet)["gcode_state"] == "PREPARE"
    assert quiet.handle({"pushing": {"command": "pushall", "sequence_id": "1"}})


def test_a_print_paused_while_warming_up_goes_on_warming_up() -> None:
    made = machine("P1S")
    made.handle(mapped(made))
    made.advance(30)
    made.handle(command("pause", param=""))
    made.advance(10_000)
    assert (status(made)["gcode_state"], status(made)["stg_cur"], status(made)["mc_print_stage"]) == ("PAUSE", 16, "3")
    made.handle(command("resume", param=""))
    assert (status(made)["gcode_state"], status(made)["stg_cur"]) == ("PREPARE", 2)


def test_the_buttons_a_person_has() -> None:
    made = machine()
    made.press_start("from the card.gcode.3mf")
    made.advance(10)
    report = status(made)
    assert (report["gcode_state"], report["subtask_name"], report["subtask_id"]) == ("PREPARE", "from the card", "0")
    with pytest.raises(NotReadyError):
        made.press_start("another")
    made.finish_now()
    assert (status(made)["gcode_state"], status(made)["mc_percent"], made.starts) == ("FINISH", 100, [])
    for button in (made.finish_now, made.stop, made.pause, made.resume, lambda: made.fail(1)):
        with pytest.raises(NotReadyError):
            button()
    made.press_start("again")
    made.fail(0x03008003)
    assert (status(made)["gcode_state"], status(made)["print_error"]) == ("FAILED", 0x03008003)
    with pytest.raises(ValueError, match="no slot"):
        made.swap_spool(7, 0, None)
    made.show_hms([(50331904, 65543)])
    assert status(made)["hms"] == [{"attr": 50331904, "code": 65543}]


def test_lights_heaters_filament_and_options_obey_their_commands() -> None:
    made = machine("P1S")
    numbers = {"led_on_time": 500, "led_off_time": 500, "loop_times": 0, "interval_time": 0}
    light = {"command": "ledctrl", "sequence_id": "1", "led_node": "chamber_light", "led_mode": "off", **numbers}
    assert made.handle({"system": light})[0]["system"]["result"] == "success"
    assert status(made)["lights_report"] == [{"node": "chamber_light", "mode": "off"}]
    refusal = made.handle({"system": {**light, "led_node": "chamber_light2"}})[0]["system"]
    assert (refusal["result"], refusal["reason"]) == ("fail", "did not find the valid led: chamber_light2")
    made.handle(command("gcode_line", param="M104 S200\nM140 S55\nG28\n"))
    made.advance(60)
    assert (status(made)["nozzle_target_temper"], status(made)["bed_target_temper"]) == (200, 55)
    assert status(made)["nozzle_temper"] > 195 and status(made)["home_flag"] & 7 == 7
    made.handle(command("ams_change_filament", target=2, curr_temp=220, tar_temp=220))
    assert status(made)["ams_status"] >> 8 == 1
    made.advance(60)
    assert status(made)["ams"]["tray_now"] == "2"
    made.swap_spool(0, 3, Spool(rfid=False))
    setting = {"ams_id": 0, "tray_id": 3, "tray_type": "PETG", "tray_color": "00FF00FF", "tray_info_idx": "GFG99"}
    made.handle(command("ams_filament_setting", **setting))
    tray = status(made)["ams"]["ams"][0]["tray"][3]
    assert (tray["tray_type"], tray["tray_color"], tray["tray_info_idx"]) == ("PETG", "00FF00FF", "GFG99")
    made.handle(command("print_option", sound_enable=False))
    assert status(made)["home_flag"] & 1 << 17 == 0
    made.handle(mapped(made))
    made.advance(600)
    made.handle(command("skip_objects", obj_list=[101, 100]))
    assert status(made)["s_obj"] == [100, 101]
    camera = {"camera": {"command": "ipcam_timelapse", "sequence_id": "1", "control": "enable"}}
    assert made.handle(camera)[0]["camera"]["result"] == 0
    assert status(made)["ipcam"]["timelapse"] == "enable"


@pytest.mark.parametrize(
    "message",
    [
        command("skip_objects", obj_list="x"),
        command("ams_change_filament", target="two"),
        command("ams_change_filament", target=-5),
        command("ams_filament_setting", ams_id=None, tray_id=[]),
        command("ams_filament_drying", ams_id={}),
        command("print_speed", param="9"),
        command("gcode_line", param="\0\n;;;\nM104 Sx"),
        command("project_file", param="", url={}, ams_mapping={}, ams_mapping2=5),
        start_message(ams_mapping=[None], ams_mapping2=[None]),
        start_message(ams_mapping=[-9], ams_mapping2=[{"ams_id": 3, "slot_id": 9}]),
        {"xcam": {"command": "xcam_control_set", "sequence_id": "1", "module_name": [], "enable": 1}},
        {"system": {"command": "ledctrl", "sequence_id": "1", "led_node": []}},
        {"camera": {"command": "ipcam_timelapse", "sequence_id": "1", "control": []}},
    ],
)
@pytest.mark.parametrize("model", ["P1S", "H2D"])
def test_ill_formed_fields_are_refused_and_never_a_crash(model: str, message: dict[str, Any]) -> None:
    made = machine(model)
    made.handle(message)
    made.advance(10)
    assert status(made)["gcode_state"] == "IDLE"


def test_sliced_files_hold_what_readers_look_at() -> None:
    plates = [Plate(2, 30, [("PLA", "#FF0000", 12.5, 4.0), None, ("PETG", "#00FF00", 3.0, 1.0)]), Plate(5, 0.5)]
    data = make_sliced_file(plates=plates, model_id="N2S")
    assert data == make_sliced_file(plates=plates, model_id="N2S")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        for number in (2, 5):
            stem = f"Metadata/plate_{number}"
            assert {f"{stem}.gcode", f"{stem}.gcode.md5", f"{stem}.json", f"{stem}.png"} <= names
        info = archive.read("Metadata/slice_info.config").decode()
        assert 'key="prediction" value="1800"' in info and 'key="weight" value="15.50"' in info
        assert 'filament id="3"' in info and 'filament id="2"' not in info
        assert archive.read("Metadata/plate_2.png").startswith(b"\x89PNG\r\n\x1a\n")
        assert json.loads(archive.read("Metadata/plate_2.json"))["filament_ids"] == [0, 2]
        assert b"total estimated time: 30m 0s" in archive.read("Metadata/plate_2.gcode")
    with zipfile.ZipFile(io.BytesIO(make_unsliced_project())) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".gcode")]
        assert "Metadata/plate_1.png" in archive.namelist()
