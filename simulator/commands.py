"""What a simulated printer does with each message of its request topic, and the shape of its acknowledgements."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from simulator.acts import SILENCE, Outcome, acts, disobey, need_param, record_start
from simulator.printer_models import AmsKind
from simulator.records import CommandRecord

if TYPE_CHECKING:
    from simulator.machine import Machine

VERIFY_FAILED = 84033543
"""0x05024007: control refused because the command is not signed and Developer Mode is off."""
NOT_VERIFIED = (0x05000500, 0x00010007)
"""HMS 0500-0500-0001-0007, attr and code: the same as a health message."""


def answer(machine: Machine, message: Any, heard_at: datetime | None) -> list[dict[str, Any]]:
    """Answers to one message, which may hold several sections; each is answered for itself."""
    if not isinstance(message, dict):
        return []
    answers: list[dict[str, Any]] = []
    for section, body in message.items():
        if isinstance(body, dict):
            answers += _answer_section(machine, section, body, heard_at)
    return answers


def _answer_section(
    machine: Machine, section: str, body: dict[str, Any], heard_at: datetime | None
) -> list[dict[str, Any]]:
    command = body.get("command")
    machine.commands.append(CommandRecord(machine.now, heard_at, section, str(command), body))
    if not isinstance(command, str):
        return []
    if machine.model.classic:
        # The programs that P1 and A1 have obeyed for years send no sequence_id with some requests.
        body = {"sequence_id": "0", **body}
    # Without a textual sequence_id, or without param where the command has one, a P2S drops the message in silence.
    elif not isinstance(body.get("sequence_id"), str) or (
        command in need_param and not isinstance(body.get("param"), str)
    ):
        return []
    if section == "pushing":
        return [machine.report(full=True)] if command in ("pushall", "start") else []
    if (section, command) == ("info", "get_version"):
        return [{"info": {"command": command, "sequence_id": body["sequence_id"], **_version(machine)}}]
    act = acts.get((section, command))
    if act is None or machine.is_replaying:
        return []
    if section == "print" and not machine.developer_mode:
        if command == "project_file":
            record_start(machine, body, heard_at, "refused", VERIFY_FAILED)
        return _unsigned(machine, body)
    outcome = disobey(machine, command) or act(machine, body, heard_at)
    return [] if outcome is SILENCE else [{section: _acknowledgement(machine, section, body, outcome)}]


def _acknowledgement(machine: Machine, section: str, body: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    if section == "camera":
        return {**body, "result": 0 if outcome.done else -1, "reason": outcome.reason}
    word = ("success" if outcome.done else "fail") if machine.model.classic else ("SUCCESS" if outcome.done else "FAIL")
    ack = {**body, **outcome.extra, "result": word, "reason": outcome.reason or word}
    if not machine.model.classic and section == "print":
        ack |= {"err_code": outcome.err_code, "is_from_mqtt": True}
    elif outcome.err_code:
        ack["err_code"] = outcome.err_code
    return ack


def _unsigned(machine: Machine, body: dict[str, Any]) -> list[dict[str, Any]]:
    match machine.faults.unsigned_answer:
        case "silence":
            return []
        case "bare echo":
            machine.show_hms([*(shown for shown in machine.hms if shown != NOT_VERIFIED), NOT_VERIFIED])
            return [{"print": {**body}}]
    # A P1S echoes the command with nothing but the code; newer models say so in words.
    if machine.model.classic:
        return [{"print": {**body, "err_code": VERIFY_FAILED}}]
    refusal = {
        "command": body["command"],
        "sequence_id": body["sequence_id"],
        "err_code": VERIFY_FAILED,
        "reason": "mqtt message verify failed",
        "result": "failed",
    }
    return [{"print": refusal}]


def _version(machine: Machine) -> dict[str, Any]:
    model = machine.model
    units = {
        AmsKind.AMS: ("ams", "AMS08", "00.00.06.49", "AMS"),
        AmsKind.LITE: ("ams_f1", "AMS_F102", "00.00.08.15", "AMS Lite"),
        AmsKind.PRO_2: ("n3f", "N3F05", "03.00.21.29", "AMS 2 Pro"),
        AmsKind.HT: ("n3s", "N3S05", "02.00.19.67", "AMS HT"),
    }
    hardware = "OTA" if model.classic else "N/A"
    modules = [_module(machine, "ota", hardware, model.firmware, model.shown_name, machine.serial)]
    modules += [_module(machine, name, hardware, firmware) for name, hardware, firmware in model.modules]
    for unit in machine.units:
        name, hardware, firmware, product = units[unit.kind]
        shown = f"{product} ({unit.id % 128 + 1})"
        modules.append(_module(machine, f"{name}/{unit.id}", hardware, firmware, shown))
    return {"module": modules, **({"result": "success", "reason": ""} if model.classic else {})}


def _module(
    machine: Machine, name: str, hardware: str, firmware: str, product: str = "", serial: str = ""
) -> dict[str, Any]:
    module: dict[str, Any] = {
        "name": name,
        "sw_ver": firmware,
        "hw_ver": hardware,
        "loader_ver": "00.00.00.00",
        "sn": serial or f"{machine.serial[:3]}{name.replace('/', '').upper()[:4]}{machine.seed:08d}",
        "flag": 3 if name == "ota" else 0,
    }
    if machine.model.old_versions:
        return {**module, "project_name": "" if "/" in name else machine.model.slice_ids[0]}
    return {**module, "product_name": product, "visible": bool(product)}
