"""What a person makes a printer do: speed, light, errors, filament; from any web process, through the worker."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from app import create_app
from bambu_client import generic_profile
from bambu_report import PrinterActivity, PrinterState, Spool
from farm.command_proof import came_true, objection, shows, waits_for_report
from models import CommandKind, CommandState, IntentState, PrinterCommand, StartIntent, db
from simulator import Plate, SimulatedPrinter, make_sliced_file
from simulator import Spool as SimulatedSpool
from tests.conftest import BASE_TIME, Clock, OutsideClient, fresh_database, settings_for
from tests.farm_builder import Farm
from tests.rows import LAN, add_intent, hear
from worker import Worker

pytestmark = pytest.mark.database

PATIENCE_SECONDS = 20
NEVER_USED_ID = 2**31 - 1
PLA = {"material_type": "PLA", "color": "#AABBCC", "nozzle_temp_min": 195, "nozzle_temp_max": 235}
ACTIONS: dict[str, dict[str, Any]] = {
    "speed": {"level": "sport"},
    "light": {"on": False},
    "clear-error": {"code": "0300-8003"},
    "load-filament": {"slot": 1, "nozzle_temp": 220},
    "unload-filament": {"nozzle_temp": 220},
    "filament": {"slot": 1, **PLA},
}


def eventually(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


class Stand:
    """A printer in the worker's hands, and two web processes beside it: one that waits long, one that does not."""

    def __init__(self, url: str, folder: Any, stack: ExitStack) -> None:
        self.printer = stack.enter_context(
            SimulatedPrinter(
                "01P00A000000001",
                "12345678",
                model="P1S",
                speed=60,
                spools=[SimulatedSpool("PLA", "112233FF"), SimulatedSpool("PETG", "FF6A13FF", rfid=False)],
            )
        )
        common = {"BAMBU_CA_FILE": str(self.printer.ca_file), "STATUS_INTERVAL_SECONDS": "0.05"}
        apps = [
            create_app(
                settings_for(url, folder / "data", COMMAND_TIMEOUT_SECONDS=seconds, **common),
                clock=lambda: datetime.now(UTC),
            )
            for seconds in ("20", "20", "1")
        ]
        for app in apps:
            app.test_client_class = OutsideClient
            stack.callback(_dispose, app)
        self.worker_app, patient, impatient = apps
        with self.worker_app.app_context():
            db.create_all()
        worker = Worker(self.worker_app)
        worker.start()
        stack.callback(worker.stop)
        # Its calls reach the worker's own process, which looks at once at what they change.
        self.farm = Farm(self.worker_app, "seller@example.com")
        self._patient, self._impatient = patient.test_client(), impatient.test_client()
        added = self.farm.add_printer(
            "Left",
            connection_type="bambu_lan",
            host=self.printer.host,
            port=self.printer.mqtt_port,
            ftps_port=self.printer.ftps_port,
            serial_number=self.printer.serial,
            access_code=self.printer.access_code,
        )
        self.printer_id, self.connection_id = added["id"], added["connection_id"]
        self.until("idle")

    @property
    def state(self) -> str:
        return str(self.farm.get(f"/api/printers/{self.printer_id}").json["status"])

    def until(self, *states: str) -> None:
        eventually(lambda: self.state in states)

    def tell(self, action: str, body: dict[str, Any] | None = None, *, impatient: bool = False) -> Any:
        client = self._impatient if impatient else self._patient
        return client.post(
            f"/api/printers/{self.printer_id}/{action}",
            json=ACTIONS[action] if body is None else body,
            headers={"Authorization": f"Bearer {self.farm.token}"},
        )

    def heard(self, name: str) -> list[dict[str, Any]]:
        return [each.body for each in self.printer.commands if each.command == name]

    def states(self) -> list[CommandState]:
        with self.worker_app.app_context():
            return list(db.session.execute(sa.select(PrinterCommand.state).order_by(PrinterCommand.id)).scalars())


def _dispose(app: Flask) -> None:
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


@pytest.fixture(scope="module")
def one_stand(
    request: pytest.FixtureRequest, database_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("stand")
    with ExitStack() as stack:
        url = f"sqlite:///{folder / 'farm.sqlite3'}"
        if request.config.getoption("--postgresql"):
            url = stack.enter_context(fresh_database(f"{database_name}_stand"))
        yield Stand(url, folder, stack)


@pytest.fixture
def stand(one_stand: Stand) -> Iterator[Stand]:
    """The same for every test, with a printer that has rested and obeys."""
    yield one_stand
    printer = one_stand.printer
    fresh = type(printer.faults)()
    for name in ("refuse_commands", "ignore_commands", "feign_commands", "ack_delay_seconds", "lose_acks"):
        setattr(printer.faults, name, getattr(fresh, name))
    printer.machine.developer_mode, printer.machine.speed_level = True, 2
    printer.speed = 60
    if printer.machine.busy:
        printer.press_stop()
    with one_stand.worker_app.app_context():
        db.session.execute(sa.delete(PrinterCommand))
        db.session.commit()
    printer.commands.clear()


@pytest.fixture
def printing(stand: Stand) -> Stand:
    stand.printer.press_start("a-vase.3mf")
    stand.printer.speed = 600
    eventually(lambda: stand.printer.machine.state == "RUNNING")
    stand.printer.speed = 60
    stand.until("printing")
    return stand


# What an answer proves


def test_a_speed_is_confirmed_by_the_printers_report(printing: Stand) -> None:
    answer = printing.tell("speed")
    assert (answer.status_code, answer.json) == (
        200,
        {
            "printer_id": printing.printer_id,
            "confirmed_by": "report",
            "message": "Done: the printer reports it.",
            "state": "printing",
        },
    )
    assert printing.printer.machine.speed_level == 3
    assert [body["param"] for body in printing.heard("print_speed")] == ["3"]


def test_what_was_so_before_is_confirmed_by_the_answer_alone(printing: Stand) -> None:
    assert printing.tell("speed", {"level": "ludicrous"}).json["confirmed_by"] == "report"
    assert printing.tell("speed", {"level": "ludicrous"}).json["confirmed_by"] == "ack"


def test_the_light_is_switched_and_only_its_answer_is_proof(stand: Stand) -> None:
    for on, mode in ((False, "off"), (True, "on")):
        answer = stand.tell("light", {"on": on})
        assert (answer.status_code, answer.json["confirmed_by"], answer.json["state"]) == (200, "ack", stand.state)
        assert stand.printer.machine.lights["chamber_light"] == mode
    assert len(stand.heard("ledctrl")) == 2


def test_an_error_is_cleared_by_its_code_and_no_other_one(printing: Stand) -> None:
    stand = printing
    stand.printer.pause_with(0x03008003)
    stand.until("paused")
    assert stand.tell("clear-error", {"code": "0300-800F"}).json["code"] == "another_error"
    assert stand.heard("clean_print_error") == []
    answer = stand.tell("clear-error", {"code": "0300-8003"})
    assert (answer.status_code, answer.json["confirmed_by"]) == (200, "report")
    assert stand.printer.machine.print_error == 0
    assert stand.tell("clear-error", {"code": "0300-8003"}).json["code"] == "another_error"
    assert [body["print_error"] for body in stand.heard("clean_print_error")] == [0x03008003]


def test_filament_is_loaded_and_unloaded(stand: Stand) -> None:
    stand.until("idle", "failed")
    answer = stand.tell("load-filament", {"slot": 1, "nozzle_temp": 240})
    assert (answer.status_code, answer.json["confirmed_by"]) == (200, "report")
    assert stand.printer.machine.loaded == (0, 1)
    answer = stand.tell("unload-filament")
    assert (answer.status_code, answer.json["confirmed_by"]) == (200, "report")
    assert stand.printer.machine.loaded is None
    assert [(body["target"], body["tar_temp"]) for body in stand.heard("ams_change_filament")] == [(1, 240), (255, 220)]


def test_filament_settings_reach_the_printer_and_leave_our_own_records(stand: Stand) -> None:
    kept = stand.farm.add_material(stand.printer_id, slot=1, material_type="PETG", color="#FF6A13", replace=True)
    answer = stand.tell("filament", {"ams_id": 0, "tray_id": 1, **PLA, "material_type": "pla"})
    assert (answer.status_code, answer.json["confirmed_by"]) == (200, "report")
    spool = stand.printer.machine.spool_at((0, 1))
    assert spool is not None
    assert (spool.material, spool.color, spool.filament_id) == ("PLA", "AABBCCFF", "GFL99")
    assert spool.nozzle_temps == (195, 235)
    assert stand.farm.get(f"/api/bambu/materials/{stand.printer_id}").json == [kept]
    answer = stand.tell("filament", {"slot": 1, **PLA, "vendor_profile": "GFA00", "color": "#aabbcc80"})
    assert (answer.status_code, answer.json["confirmed_by"]) == (200, "report")
    assert (spool.color, spool.filament_id) == ("AABBCC80", "GFA00")


# A printer that misbehaves


def test_a_refusal_is_502_in_the_printers_words_and_changes_nothing(printing: Stand) -> None:
    stand = printing
    stand.printer.faults.refuse_commands = {"print_speed": "not <now>", "ledctrl": "no such lamp"}
    for action, name, words in (("speed", "print_speed", "not <now>"), ("light", "ledctrl", "no such lamp")):
        answer = stand.tell(action)
        assert (answer.status_code, answer.json["code"]) == (502, "not_confirmed")
        assert words in answer.json["error"]
        assert len(stand.heard(name)) == 1
    assert stand.printer.machine.speed_level == 2
    assert stand.states() == [CommandState.refused] * 2


def test_a_refusal_counts_even_when_the_printer_shows_what_was_asked_for(printing: Stand) -> None:
    printing.printer.faults.refuse_commands = {"print_speed": "no"}
    assert printing.tell("speed", {"level": "standard"}).status_code == 502


def test_a_spool_with_a_chip_takes_no_other_settings(stand: Stand) -> None:
    answer = stand.tell("filament", {"slot": 0, **PLA})
    assert (answer.status_code, answer.json["code"]) == (502, "not_confirmed")
    assert "read from its tag" in answer.json["error"]


def test_a_printer_without_developer_mode_says_what_to_switch_on(printing: Stand) -> None:
    printing.printer.machine.developer_mode = False
    answer = printing.tell("speed")
    assert answer.status_code == 502
    assert "Developer Mode" in answer.json["error"]


def test_silence_is_502_and_nothing_is_sent_twice(printing: Stand) -> None:
    printing.printer.faults.ignore_commands = frozenset({"print_speed"})
    answer = printing.tell("speed", impatient=True)
    assert (answer.status_code, answer.json["code"]) == (502, "not_confirmed")
    assert answer.json["error"] == "The printer did not confirm in time. Look at its screen."
    assert len(printing.heard("print_speed")) == 1


def test_a_yes_that_no_report_bears_out_is_502_and_says_so(printing: Stand) -> None:
    printing.printer.faults.feign_commands = frozenset({"print_speed"})
    answer = printing.tell("speed", impatient=True)
    assert (answer.status_code, answer.json["code"]) == (502, "not_confirmed")
    assert "its reports do not show" in answer.json["error"]
    assert len(printing.heard("print_speed")) == 1


def test_a_late_answer_is_waited_for(printing: Stand) -> None:
    printing.printer.faults.ack_delay_seconds = 60.0  # a second of real time
    began = time.monotonic()
    answer = printing.tell("speed", {"level": "silent"})
    assert (answer.status_code, answer.json["confirmed_by"]) == (200, "report")
    assert time.monotonic() - began > 0.9


def test_a_filament_change_takes_its_time_and_keeps_prints_from_starting(stand: Stand) -> None:
    farm, printer = stand.farm, stand.printer
    stand.until("idle", "failed")
    if printer.machine.loaded is None:
        assert stand.tell("load-filament").status_code == 200
    for material in farm.get(f"/api/bambu/materials/{stand.printer_id}").json:
        farm.delete(f"/api/bambu/materials/{material['id']}")
    farm.add_material(stand.printer_id, slot=0, color="#FFFFFF")
    file = farm.add_file(make_sliced_file(None, [Plate(minutes=30)]))
    printer.speed = 0
    answer = stand.tell("unload-filament", impatient=True)
    assert (answer.status_code, answer.json["confirmed_by"]) == (200, "ack")
    assert "No report" in answer.json["message"]
    again = stand.tell("load-filament")
    assert (again.status_code, again.json["code"]) == (409, "command_under_way")
    path = f"/api/printers/{stand.printer_id}/plate-cleared"
    assert farm.post(path, {"print_id": None}).status_code == 200
    made = farm.add_print(stand.printer_id, print_file_id=file["id"], material_type="PLA", status="scheduled")
    time.sleep(0.7)  # the worker has looked for work more than once
    with stand.worker_app.app_context():
        intents = db.session.execute(sa.select(sa.func.count()).select_from(StartIntent)).scalar_one()
    assert (intents, printer.starts, stand.states()[-1]) == (0, [], CommandState.sent)
    printer.advance(41)
    eventually(lambda: stand.states()[-1] is CommandState.done)
    eventually(lambda: printer.starts)
    printer.speed = 60
    eventually(lambda: (farm.get_print(made["id"]) or {})["status"] == "started")
    assert stand.tell("unload-filament").json["code"] == "printer_busy"
    assert farm.post(f"/api/bambu/scheduled-prints/{made['id']}/stop").status_code == 200


def test_what_nobody_waits_for_any_more_is_never_sent(stand: Stand) -> None:
    now = datetime.now(UTC)
    with stand.worker_app.app_context():
        stale = PrinterCommand(
            user_id=stand.farm.user["id"],
            printer_id=stand.printer_id,
            kind=CommandKind.light,
            arguments={"on": False},
            requested_at=now - timedelta(seconds=21),
            expires_at=now - timedelta(seconds=1),
        )
        db.session.add(stale)
        db.session.commit()
    eventually(lambda: stand.states() == [CommandState.expired])
    assert stand.tell("light", {"on": True}).status_code == 200
    assert [body["led_mode"] for body in stand.heard("ledctrl")] == ["on"]


# What is refused before anything is asked


@pytest.fixture
def linked_id(farm: Farm) -> int:
    return int(farm.add_printer(**LAN)["id"])


def commands(farm: Farm) -> int:
    with farm.database() as session:
        return int(session.execute(sa.select(sa.func.count()).select_from(PrinterCommand)).scalar_one())


@pytest.mark.parametrize("action", ACTIONS)
def test_without_a_live_link_it_is_409(farm: Farm, linked_id: int, clock: Clock, action: str) -> None:
    bare = farm.add_printer("bare")["id"]
    for printer_id in (linked_id, bare):
        answer = farm.post(f"/api/printers/{printer_id}/{action}", ACTIONS[action])
        assert (answer.status_code, answer.json["code"]) == (409, "no_live_link")
    hear(farm, linked_id, clock, "printing", ago_seconds=90)
    answer = farm.post(f"/api/printers/{linked_id}/{action}", ACTIONS[action])
    assert (answer.status_code, answer.json["code"], commands(farm)) == (409, "no_live_link", 0)


@pytest.mark.parametrize("action", ACTIONS)
def test_another_users_printer_answers_like_a_missing_one(
    farm: Farm, stranger: Farm, clock: Clock, action: str
) -> None:
    theirs = stranger.add_printer(**LAN)["id"]
    hear(stranger, theirs, clock, "idle")
    answers = [farm.post(f"/api/printers/{each}/{action}", ACTIONS[action]) for each in (theirs, NEVER_USED_ID)]
    assert (answers[0].status_code, answers[0].data) == (404, answers[1].data)
    assert commands(farm) == 0


FORBIDDEN = [
    ("speed", ("idle", "finished", "failed", "unknown"), "not_running"),
    ("load-filament", ("preparing", "printing", "unknown"), "printer_busy"),
    ("unload-filament", ("preparing", "printing", "unknown"), "printer_busy"),
    ("clear-error", ("paused",), "another_error"),
]


@pytest.mark.parametrize(("action", "states", "code"), FORBIDDEN)
def test_a_state_that_forbids_it_is_409(
    farm: Farm, linked_id: int, clock: Clock, action: str, states: tuple[str, ...], code: str
) -> None:
    health = {"code": "0300-0100-0001-0007", "severity": "fatal", "message": "-"}
    other = {"code": "0300-800F", "severity": "serious", "message": "-"}
    for state in states:
        hear(farm, linked_id, clock, state, errors=[health, other])
        answer = farm.post(f"/api/printers/{linked_id}/{action}", ACTIONS[action])
        assert (answer.status_code, answer.json["code"]) == (409, code)
    assert commands(farm) == 0


@pytest.mark.parametrize("intent", [IntentState.uploading, IntentState.published, IntentState.unknown])
def test_no_filament_is_changed_while_a_print_is_on_its_way(
    farm: Farm, linked_id: int, clock: Clock, intent: IntentState
) -> None:
    add_intent(farm, farm.add_print(linked_id, status="scheduled")["id"], intent)
    hear(farm, linked_id, clock, "finished")
    answer = farm.post(f"/api/printers/{linked_id}/load-filament", ACTIONS["load-filament"])
    assert (answer.status_code, answer.json["code"], commands(farm)) == (409, "start_under_way", 0)


def test_the_same_twice_at_once_is_409_until_the_first_has_ended(farm: Farm, linked_id: int, clock: Clock) -> None:
    hear(farm, linked_id, clock, "idle")
    with farm.database() as session:
        session.add(
            PrinterCommand(
                user_id=farm.user["id"],
                printer_id=linked_id,
                kind=CommandKind.light,
                arguments={"on": True},
                state=CommandState.sent,
                requested_at=clock.now,
                expires_at=clock.now + timedelta(seconds=20),
            )
        )
        session.commit()
    path = f"/api/printers/{linked_id}/light"
    assert farm.post(path, {"on": False}).json["code"] == "command_under_way"
    clock.forward(seconds=20)
    hear(farm, linked_id, clock, "idle")
    answer = farm.post(path, {"on": False})
    assert (answer.status_code, answer.json["code"]) == (502, "not_confirmed")


BAD: dict[str, list[tuple[dict[str, Any], set[str]]]] = {
    "speed": [({"level": bad}, {"level"}) for bad in ("fast", "Sport", "", 2, None, True)] + [({}, {"level"})],
    "light": [
        ({}, {"on"}),
        ({"on": True, "led_node": "x"}, {"led_node"}),
        *[({"on": bad}, {"on"}) for bad in ("on", 1, None)],
    ],
    "clear-error": [
        ({}, {"code"}),
        *[({"code": bad}, {"code"}) for bad in ("", "0300", "0300_8003", "0300-800G", "0300-8003\n0", 5)],
        ({"code": "0300-0100-0001-0007"}, {"code"}),
    ],
    "load-filament": [
        ({}, {"slot", "nozzle_temp"}),
        ({"slot": 8, "nozzle_temp": 149}, {"slot", "nozzle_temp"}),
        ({"slot": 1, "ams_id": 0, "tray_id": 1, "nozzle_temp": 220}, {"slot"}),
        ({"ams_id": 0, "nozzle_temp": 220}, {"tray_id"}),
        ({"ams_id": 0, "tray_id": 4, "nozzle_temp": 321}, {"ams_id", "nozzle_temp"}),
        ({"ams_id": 255, "tray_id": 254, "nozzle_temp": 220}, {"ams_id"}),
    ],
    "unload-filament": [
        ({"slot": 1}, {"slot", "nozzle_temp"}),
        ({"nozzle_temp": "220"}, {"nozzle_temp"}),
    ],
    "filament": [
        ({}, {"slot", "material_type", "color", "nozzle_temp_min", "nozzle_temp_max"}),
        (
            {"slot": 0, **PLA, "nozzle_temp_min": 240, "material_type": "WOOD"},
            {"nozzle_temp_max", "vendor_profile"},
        ),
        *[({"slot": 0, **PLA, "color": bad}, {"color"}) for bad in ("red", "#12345", "112233", "", None)],
        *[({"slot": 0, **PLA, "material_type": bad}, {"material_type"}) for bad in ("", "PLA Ω", "P" * 17, 5)],
        *[
            ({"slot": 0, **PLA, "vendor_profile": bad}, {"vendor_profile"})
            for bad in ("", "GFL 99", "../x", "G" * 17, None)
        ],
        *[({"slot": 0, **PLA, "nozzle_temp_max": bad}, {"nozzle_temp_max"}) for bad in (-1, 401, "x", None)],
    ],
}


@pytest.mark.parametrize("action", ACTIONS)
def test_bad_shapes_are_refused_with_every_fault_by_name(farm: Farm, linked_id: int, clock: Clock, action: str) -> None:
    hear(farm, linked_id, clock, "idle")
    for body, faulty in BAD[action]:
        answer = farm.post(f"/api/printers/{linked_id}/{action}", body)
        assert (answer.status_code, set(answer.json["fields"])) == (422, faulty), body
    assert commands(farm) == 0


# What shows that a command came true

RESTING = PrinterState(known=True, state=PrinterActivity.idle)
TRAY = Spool(0, 1, 1, True, "PLA", "#AABBCCFF", vendor_profile="GFL99", nozzle_temp_min=195, nozzle_temp_max=235)
SETTINGS = {"place": [0, 1], **PLA, "color": "#AABBCCFF", "vendor_profile": "GFL99"}
SHOWN: list[tuple[CommandKind, dict[str, Any], dict[str, Any], bool | None]] = [
    (CommandKind.speed, {"level": 3}, {"speed_level": 3}, True),
    (CommandKind.speed, {"level": 3}, {"speed_level": 2}, False),
    (CommandKind.speed, {"level": 3}, {}, None),
    (CommandKind.light, {"on": True}, {}, None),
    (CommandKind.test, {}, {}, None),
    (CommandKind.clear_error, {"code": "0300-8003"}, {"print_error": "0300-8003"}, False),
    (CommandKind.clear_error, {"code": "0300-8003"}, {}, True),
    (CommandKind.change_filament, {"place": [1, 2], "nozzle_temp": 220}, {"feeding": (1, 2)}, True),
    (CommandKind.change_filament, {"place": [1, 2], "nozzle_temp": 220}, {"feeding": (0, 2)}, False),
    (CommandKind.change_filament, {"place": None, "nozzle_temp": 220}, {"feeding": (0, 2)}, False),
    (CommandKind.change_filament, {"place": None, "nozzle_temp": 220}, {}, True),
    (CommandKind.set_filament, SETTINGS, {"spools": (TRAY,)}, True),
    (CommandKind.set_filament, SETTINGS, {"spools": ()}, None),
    *[
        (CommandKind.set_filament, SETTINGS, {"spools": (dataclasses.replace(TRAY, **change),)}, shown)
        for change, shown in (
            ({"material_type": "PETG"}, False),
            ({"material_type": None}, False),
            ({"color": "#AABBCC80"}, False),
            ({"vendor_profile": "GFA00"}, False),
            ({"vendor_profile": None, "nozzle_temp_min": None, "nozzle_temp_max": None}, True),
            ({"nozzle_temp_max": 240}, False),
        )
    ],
]


@pytest.mark.parametrize(("kind", "arguments", "reported", "shown"), SHOWN)
def test_a_report_shows_a_command_or_does_not_or_cannot(
    kind: CommandKind, arguments: dict[str, Any], reported: dict[str, Any], shown: bool | None
) -> None:
    state = dataclasses.replace(RESTING, **reported)
    assert shows(kind, arguments, state) is shown
    assert shows(kind, arguments, dataclasses.replace(state, known=False)) is None
    assert waits_for_report(kind, arguments, state) is (shown is False)


@pytest.mark.parametrize(("result", "done"), [(None, False), ({"accepted": True}, True), ({"accepted": False}, True)])
def test_a_report_counts_only_once_the_answer_is_in_or_its_time_is_over(
    result: dict[str, Any] | None, done: bool
) -> None:
    told = PrinterCommand(kind=CommandKind.speed, arguments={"level": 3}, result=result, requested_at=BASE_TIME)
    assert came_true(told, dataclasses.replace(RESTING, speed_level=3)) is done
    assert came_true(told, dataclasses.replace(RESTING, speed_level=2)) is False


def test_what_the_print_does_counts_without_an_answer() -> None:
    for kind, activity in (("pause", "paused"), ("resume", "printing"), ("stop", "failed")):
        told = PrinterCommand(kind=CommandKind(kind), requested_at=BASE_TIME)
        assert came_true(told, dataclasses.replace(RESTING, state=PrinterActivity(activity)))
        assert waits_for_report(told.kind, {}, dataclasses.replace(RESTING, state=PrinterActivity(activity)))


def test_a_worker_looks_again_before_it_sends() -> None:
    printing = dataclasses.replace(RESTING, state=PrinterActivity.printing)
    paused = dataclasses.replace(printing, state=PrinterActivity.paused, print_error="0300-8003")
    assert objection(CommandKind.change_filament, {}, printing)
    assert not objection(CommandKind.change_filament, {}, paused)
    assert not objection(CommandKind.clear_error, {"code": "0300-8003"}, paused)
    assert objection(CommandKind.clear_error, {"code": "0300-8003"}, printing)
    assert not objection(CommandKind.light, {"on": True}, printing)


def test_generic_profiles_are_known_in_any_case_of_letters() -> None:
    assert (generic_profile("PLA"), generic_profile("petg-cf"), generic_profile("WOOD")) == ("GFL99", "GFG98", None)
