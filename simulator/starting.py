"""Reading a `project_file`: where the file is, which plate, which slots; and why a printer would refuse it."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, BinaryIO

from simulator.plate_reader import SlicedPlate, UnreadableFileError, read_plate
from simulator.run import PrintRequest
from simulator.spools import A2L_UNIT, LEFT_EXTERNAL, MAIN_EXTERNAL, Address

if TYPE_CHECKING:
    from simulator.machine import Machine

BUSY = 0x05004004
CANNOT_PARSE = 0x05004003
BAD_PATH = 0x05004002
NO_CARD = 0x0500400C
OTHER_MODEL = 0x05004037
OTHER_NOZZLE = 0x05004038
NO_AMS = 0x07FF8012
BAD_MAPPING = 0x07008012

_ROOTS = ("ftp:///", "ftp://", "file:///sdcard/", "file:///mnt/sdcard/", "file:///media/usb0/")
_PLATE = re.compile(r"Metadata/plate_(\d{1,3})\.gcode")


class RefusedStartError(Exception):
    """Why a start is refused; `code` is the `print_error`, `reason` words for the acknowledgement."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code:08X} {reason}")
        self.code = code
        self.reason = reason


def read_request(machine: Machine, body: dict[str, Any]) -> PrintRequest:
    """The print a `project_file` asks for. Raises RefusedStartError."""
    if machine.busy:
        raise RefusedStartError(BUSY, "printer is busy")
    if machine.storage == "none":
        raise RefusedStartError(NO_CARD, "no storage")
    plate_number = plate_number_of(body["param"])
    if plate_number is None:
        raise RefusedStartError(BAD_PATH, "invalid param")
    path = path_of(body.get("url"))
    try:
        with machine.open_file(path) as file:
            _check_md5(file, body.get("md5"))
            plate = read_plate(file, body["param"])
    except FileNotFoundError as missing:
        raise RefusedStartError(BAD_PATH, "no such file") from missing
    except UnreadableFileError as problem:
        raise RefusedStartError(CANNOT_PARSE, "cannot parse the file") from problem
    _check_sliced_for(machine, plate)
    slots = _slots(machine, body, plate)
    file_name = path.rsplit("/", 1)[-1]
    return PrintRequest(
        plate,
        subtask_name=str(body.get("subtask_name") or _stem(file_name)),
        gcode_file=machine.shown_file(file_name, plate_number),
        subtask_id=str(body.get("subtask_id", "0")),
        task_id=str(body.get("task_id", "0")),
        project_id=str(body.get("project_id", "0")),
        profile_id=str(body.get("profile_id", "0")),
        plate_number=plate_number,
        slots=slots,
        mapping=_flat_mapping(body),
        bed_leveling=body.get("bed_leveling") is True or body.get("auto_bed_leveling") in (1, 2),
        flow_cali=body.get("flow_cali") is True,
        vibration_cali=body.get("vibration_cali") is True,
    )


def request_from_card(machine: Machine, path: str, param: str = "Metadata/plate_1.gcode") -> PrintRequest:
    """A stored file as it is started at the screen: without ids, from the external spool.

    Raises FileNotFoundError and UnreadableFileError.
    """
    with machine.open_file(path) as file:
        plate = read_plate(file, param)
    return card_request(machine, path, plate, plate_number_of(param) or 1)


def card_request(machine: Machine, path: str, plate: SlicedPlate, plate_number: int = 1) -> PrintRequest:
    """The same for a plate that is known already."""
    file_name = path.rsplit("/", 1)[-1]
    slots = {filament.id: MAIN_EXTERNAL for filament in plate.filaments}
    shown = machine.shown_file(file_name, plate_number)
    return PrintRequest(plate, _stem(file_name), shown, plate_number=plate_number, slots=slots)


def plate_number_of(param: Any) -> int | None:
    """The plate that a start's `param` names, None if it names none."""
    found = _PLATE.fullmatch(param) if isinstance(param, str) else None
    return int(found.group(1)) if found else None


def _stem(file_name: str) -> str:
    return file_name.removesuffix(".3mf").removesuffix(".gcode")


def path_of(url: Any) -> str:
    """The path below the storage's root that a start's `url` names. Raises RefusedStartError."""
    if isinstance(url, str):
        for root in _ROOTS:
            rest = url.removeprefix(root)
            if rest != url and rest and not rest.startswith("/") and ".." not in rest.split("/"):
                return rest
    raise RefusedStartError(BAD_PATH, "invalid url")


def _check_md5(file: BinaryIO, md5: Any) -> None:
    if not isinstance(md5, str) or not re.fullmatch(r"[0-9A-Fa-f]{32}", md5):
        return
    digest = hashlib.md5(usedforsecurity=False)
    while block := file.read(1 << 20):
        digest.update(block)
    if digest.hexdigest() != md5.lower():
        raise RefusedStartError(CANNOT_PARSE, "md5 does not match")
    file.seek(0)


def _check_sliced_for(machine: Machine, plate: SlicedPlate) -> None:
    if plate.model_id and plate.model_id not in machine.model.slice_ids:
        raise RefusedStartError(OTHER_MODEL, "sliced for another printer")
    if plate.nozzle_diameters and plate.nozzle_diameters.split(",")[0] != machine.nozzle_diameter:
        raise RefusedStartError(OTHER_NOZZLE, "sliced for another nozzle")


def _flat_mapping(body: dict[str, Any]) -> list[int]:
    mapping = body.get("ams_mapping")
    return [value for value in mapping if isinstance(value, int)] if isinstance(mapping, list) else []


def _slots(machine: Machine, body: dict[str, Any], plate: SlicedPlate) -> dict[int, Address]:
    """Filament id -> slot. Modern printers read `ams_mapping2` where it is sent, classic ones `ams_mapping`."""
    if body.get("use_ams") is not True:
        return {filament.id: MAIN_EXTERNAL for filament in plate.filaments}
    if not machine.units:
        raise RefusedStartError(NO_AMS, "no AMS")
    flat, pairs = _flat_mapping(body), body.get("ams_mapping2")
    if any(value in (254, 255) for value in flat):
        raise RefusedStartError(BAD_MAPPING, "external spool in ams_mapping")
    slots: dict[int, Address] = {}
    for filament in plate.filaments:
        index = filament.id - 1
        if isinstance(pairs, list) and not machine.model.classic:
            address = _from_pair(pairs[index]) if index < len(pairs) else None
        else:
            address = _from_flat(machine, flat[index]) if index < len(flat) else None
        if address is None:
            raise RefusedStartError(BAD_MAPPING, f"filament {filament.id} is not mapped")
        if address[0] not in machine.external and machine.spool_at(address) is None:
            raise RefusedStartError(BAD_MAPPING, f"no spool for filament {filament.id}")
        slots[filament.id] = address
    return slots


def _from_pair(pair: Any) -> Address | None:
    """An entry of `ams_mapping2`; 255/255 says the filament is not used."""
    if not isinstance(pair, dict):
        return None
    ams_id, slot = pair.get("ams_id"), pair.get("slot_id")
    if not isinstance(ams_id, int) or not isinstance(slot, int) or (ams_id, slot) == (255, 255):
        return None
    if ams_id == 255:
        return MAIN_EXTERNAL
    return LEFT_EXTERNAL if ams_id == 254 else (ams_id, slot)


def _from_flat(machine: Machine, value: int) -> Address | None:
    """An entry of `ams_mapping`; -1 says external (or unused, but then nobody asks)."""
    if value == -1:
        return MAIN_EXTERNAL
    if value >= 128:
        return (value, 0)
    if any(unit.id == A2L_UNIT for unit in machine.units):
        return (A2L_UNIT, value)
    return (value // 4, value % 4)
