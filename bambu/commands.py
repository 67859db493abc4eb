"""What is said to a Bambu Lab printer, and how its answers read. Pure; the wire's words stop here.

A command is one JSON object; its answer comes back among the reports, told by section, command and sequence id. An
answer means that the printer heard, not that anything happened: only its reports say that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bambu.errors import DEVELOPER_MODE_OFF, error_code, sentence
from bambu.spools import EXTERNAL, EXTERNAL_LEFT, Unit
from bambu.values import Unreadable, text, whole

_REMOTE_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,32}/)?[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
_TITLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._#-]{0,63}")
_BED_TYPES = frozenset({"cool_plate", "eng_plate", "hot_plate", "textured_plate", "supertack_plate"})
_UNUSED = {"ams_id": 255, "slot_id": 255}
_AMS_LITE_OF_A2L = 16


@dataclass(frozen=True, slots=True)
class StartOptions:
    """What the printer does before and during a print."""

    bed_leveling: bool = True
    flow_calibration: bool = False
    vibration_calibration: bool = False
    first_layer_inspection: bool = False
    timelapse: bool = False


@dataclass(frozen=True, slots=True)
class StartOrder:
    """One start of one plate of a file that is already on the printer.

    `remote_name`: the file's path below the printer's storage. `title`: short ASCII, made by us, never a user's text.
    `submission_id`: 1..2^31-1, comes back in the printer's reports. `bed_type`: as in the sliced file, None lets the
    printer decide. `mapping`: for each filament of the slicer's list (its id - 1), the (ams_id, tray_id) to feed from,
    None where unused, (255, 0) the external spool.
    """

    remote_name: str
    title: str
    plate: int
    submission_id: int
    bed_type: str | None
    mapping: tuple[tuple[int, int] | None, ...]
    options: StartOptions = StartOptions()

    def __post_init__(self) -> None:
        """Raises ValueError for what must not go onto the wire."""
        if not _REMOTE_NAME.fullmatch(self.remote_name):
            raise ValueError("a remote name is short, ASCII and without blanks")
        if not _TITLE.fullmatch(self.title):
            raise ValueError("a title is short and ASCII")
        if not 1 <= self.plate <= 999 or not 1 <= self.submission_id <= 0x7FFFFFFF:
            raise ValueError("a plate is 1 to 999, a submission id 1 to 2147483647")
        if len(self.mapping) > 64 or not all(place is None or is_place(place) for place in self.mapping):
            raise ValueError("a mapping names places for at most 64 filaments")


def is_place(place: tuple[int, int]) -> bool:
    """Whether (ams_id, tray_id) can be a place for a spool; the external ones are (255, 0) and, left, (254, 0)."""
    ams_id, tray_id = place
    return place in (EXTERNAL, EXTERNAL_LEFT) or (0 <= tray_id <= 3 and (0 <= ams_id < 32 or 128 <= ams_id < 160))


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one command. `accepted` is None for an echo that decides nothing, and for no answer at all."""

    command: str
    sequence_id: str
    accepted: bool | None
    code: str | None
    reason: str | None
    submission_id: str | None


Command = dict[str, dict[str, Any]]

FULL_REPORT: Command = {"pushing": {"command": "pushall", "version": 1, "push_target": 1}}
RESUME_REPORTS: Command = {"pushing": {"command": "start"}}
VERSION: Command = {"info": {"command": "get_version"}}
PAUSE: Command = {"print": {"command": "pause", "param": ""}}
RESUME: Command = {"print": {"command": "resume", "param": ""}}
STOP: Command = {"print": {"command": "stop", "param": ""}}


def start_print(order: StartOrder, *, two_nozzles: bool) -> Command:
    """The start of a print. Ids are strings; `use_ams` must be a boolean (an H2D Pro reads a number as a nozzle)."""
    directory, _, file_name = order.remote_name.rpartition("/")
    submission = str(order.submission_id)
    options = order.options
    return {
        "print": {
            "command": "project_file",
            "param": f"Metadata/plate_{order.plate}.gcode",
            "url": f"ftp:///{order.remote_name}" if directory else f"ftp://{file_name}",
            "file": file_name,
            "subtask_name": order.title,
            "md5": "",
            "project_id": submission,
            "profile_id": "0",
            "task_id": submission,
            "subtask_id": submission,
            "bed_type": order.bed_type if order.bed_type in _BED_TYPES else "auto",
            "bed_leveling": options.bed_leveling,
            "auto_bed_leveling": int(options.bed_leveling),
            "flow_cali": options.flow_calibration,
            "extrude_cali_flag": int(options.flow_calibration),
            "extrude_cali_manual_mode": 0,
            "vibration_cali": options.vibration_calibration,
            "layer_inspect": options.first_layer_inspection,
            "timelapse": options.timelapse,
            "nozzle_offset_cali": 2 if two_nozzles else 0,
            "use_ams": any(place is not None and place[0] < 254 for place in order.mapping),
            "ams_mapping": [_flat(place) for place in order.mapping],
            "ams_mapping2": [
                _UNUSED if place is None else {"ams_id": place[0], "slot_id": place[1]} for place in order.mapping
            ],
            "cfg": "0",
        }
    }


def _flat(place: tuple[int, int] | None) -> int:
    # External spools are -1 here and named in the second list alone: 254 or 255 is refused with 0700-8012.
    if place is None or place[0] >= 254:
        return -1
    ams_id, tray_id = place
    if ams_id == _AMS_LITE_OF_A2L:
        return tray_id
    return ams_id if ams_id >= 128 else ams_id * 4 + tray_id


def set_speed(level: int) -> Command:
    """1 silent, 2 standard, 3 sport, 4 ludicrous. Raises ValueError."""
    if level not in (1, 2, 3, 4):
        raise ValueError("a speed level is 1 to 4")
    return {"print": {"command": "print_speed", "param": str(level)}}


def set_light(on: bool) -> Command:
    """The chamber's light."""
    return {
        "system": {
            "command": "ledctrl",
            "led_node": "chamber_light",
            "led_mode": "on" if on else "off",
            "led_on_time": 500,
            "led_off_time": 500,
            "loop_times": 0,
            "interval_time": 0,
        }
    }


def clear_error(print_error: str, submission_id: str | None) -> Command:
    """Takes the error off the printer's screen. `print_error` as in PrinterState: `0500-4004`. Raises ValueError."""
    number = int(print_error.replace("-", ""), 16)
    return {"print": {"command": "clean_print_error", "subtask_id": submission_id or "0", "print_error": number}}


def nozzle_fed_from(place: tuple[int, int] | None, units: Sequence[Unit], active: int | None) -> int:
    """0 right or only, 1 left: the nozzle that a place feeds; the active one where nothing is to be fed."""
    if place is None:
        return active or 0
    if place == EXTERNAL_LEFT:
        return 1
    return next((unit.nozzle or 0 for unit in units if unit.ams_id == place[0]), 0)


def change_filament(place: tuple[int, int] | None, *, nozzle_temp: int, nozzle: int = 0) -> Command:
    """Loads from a place, or unloads with None. `nozzle_temp` in °C, 150 to 320. Raises ValueError."""
    if not 150 <= nozzle_temp <= 320 or (place is not None and not is_place(place)):
        raise ValueError("filament is changed at 150 to 320 °C, from a place for a spool")
    ams_id, tray_id = place or (255, 255)
    return {
        "print": {
            "command": "ams_change_filament",
            "target": 255 if place is None else 254 if ams_id >= 254 else _flat(place),
            "curr_temp": nozzle_temp,
            "tar_temp": nozzle_temp,
            "ams_id": ams_id,
            "slot_id": tray_id,
            "extruder_id": nozzle,
        }
    }


def set_filament(
    place: tuple[int, int],
    *,
    vendor_profile: str,
    material_type: str,
    color: str,
    nozzle_temp_min: int,
    nozzle_temp_max: int,
) -> Command:
    """Tells the printer what is in a place. `color` `#RRGGBB` or `#RRGGBBAA`, temperatures in °C. Raises ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9]{1,16}", vendor_profile) or not re.fullmatch(r"[A-Z0-9+-]{1,16}", material_type):
        raise ValueError("a profile and a material are short and ASCII")
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}(?:[0-9A-Fa-f]{2})?", color) or not is_place(place):
        raise ValueError("a colour is #RRGGBB or #RRGGBBAA, a place one for a spool")
    if not 0 <= nozzle_temp_min <= nozzle_temp_max <= 400:
        raise ValueError("nozzle temperatures are 0 to 400 °C, the lower one first")
    ams_id, tray_id = place
    external = ams_id >= 254
    return {
        "print": {
            "command": "ams_filament_setting",
            "ams_id": ams_id,
            "tray_id": 254 if external else tray_id,
            "slot_id": tray_id,
            "tray_info_idx": vendor_profile,
            "tray_color": color[1:].upper().ljust(8, "F"),
            "nozzle_temp_min": nozzle_temp_min,
            "nozzle_temp_max": nozzle_temp_max,
            "tray_type": material_type,
        }
    }


def numbered(command: Command, sequence_id: str) -> Command:
    """A copy of the command with its sequence id."""
    return {section: {"sequence_id": sequence_id, **fields} for section, fields in command.items()}


def section_and_name(command: Command) -> tuple[str, str]:
    """Where the answer to a command will stand and what it will be called."""
    section, fields = next(iter(command.items()))
    return section, str(fields["command"])


def answers(message: Mapping[str, Any]) -> Iterator[tuple[str, Answer]]:
    """(section, answer) for every answer in a decoded message. The screen's own commands are answered here too."""
    for section in ("print", "system", "camera", "xcam"):
        fields = message.get(section)
        if type(fields) is dict:
            command, sequence_id = fields.get("command", ""), fields.get("sequence_id")
            if type(command) is str and command != "push_status" and type(sequence_id) in (str, int):
                yield section, _answer(command, str(sequence_id), fields)


def _answer(command: str, sequence_id: str, fields: Mapping[str, Any]) -> Answer:
    number = _error_number(fields.get("err_code")) or _error_number(fields.get("errno"))
    result = fields.get("result")
    accepted: bool | None
    if type(result) is int:
        accepted = result == 0
    elif type(result) is str:
        accepted = {"success": True, "ok": True, "fail": False, "failed": False}.get(result.strip().lower())
    else:
        accepted = None
    if number:
        accepted = False
    submission = _plain(fields.get("subtask_id"))
    return Answer(
        command,
        sequence_id,
        accepted,
        error_code(number) if number else None,
        _plain(fields.get("reason")),
        submission if submission != "0" else None,
    )


def _error_number(given: object) -> int:
    try:
        return whole(given)
    except Unreadable:
        return 0


def _plain(given: object) -> str | None:
    try:
        return text(given) or None
    except Unreadable:
        return None


def explain(answer: Answer) -> str:
    """An answer in plain words, for the person whose command it was."""
    if answer.accepted:
        return "the printer accepted"
    known = sentence(answer.code) if answer.code else None
    if known is None and answer.reason and "verify failed" in answer.reason.lower():
        known = sentence(error_code(DEVELOPER_MODE_OFF))
    if known:
        return known
    if answer.accepted is None:
        return answer.reason or "the printer has not said whether it accepts; its own reports will show"
    detail = " ".join(part for part in (answer.code, answer.reason) if part and part.lower() not in ("fail", "failed"))
    return f"the printer refused ({detail})" if detail else "the printer refused and gave no reason"
