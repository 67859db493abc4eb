"""Spools and the AMS units that hold them, with the objects a report shows for each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from simulator.printer_models import AmsKind, PrinterModel

Address = tuple[int, int]
"""(ams_id, slot); external spools are (255, 0) main or right, (254, 0) left."""

MAIN_EXTERNAL: Address = (255, 0)
LEFT_EXTERNAL: Address = (254, 0)
NO_TAG = "0" * 16
NO_UUID = "0" * 32
A2L_UNIT = 16

_info_nibble = {AmsKind.AMS: 1, AmsKind.LITE: 2, AmsKind.PRO_2: 3, AmsKind.HT: 4}
_temperatures = {"PLA": (190, 230), "PETG": (230, 260), "ABS": (240, 270), "ASA": (240, 270), "TPU": (200, 250)}


@dataclass
class Spool:
    """A spool of filament. `color` is RRGGBBAA; weights in grams; without `rfid` a printer knows neither
    the spool's identity nor how much is left. `nozzle_temps` in °C, lowest and highest; None: the material's usual."""

    material: str = "PLA"
    color: str = "FFFFFFFF"
    grams_left: float = 1000.0
    grams_full: float = 1000.0
    rfid: bool = True
    brand: str = "PLA Basic"
    filament_id: str = "GFA00"
    uuid: str = ""
    nozzle_temps: tuple[int, int] | None = None

    def name_tag(self, chance: Random) -> None:
        """Gives a spool with RFID an identity if it has none yet."""
        if self.rfid and not self.uuid:
            self.uuid = f"{chance.getrandbits(128):032X}"

    @property
    def remain_percent(self) -> int:
        if self.grams_full <= 0:
            return 0
        # A hair of rounding must not cost a whole per cent.
        return max(0, min(100, int(100 * self.grams_left / self.grams_full + 1e-6)))


@dataclass
class AmsUnit:
    """One AMS. `id` 0–3, AMS HT 128 and up, the A2L's Lite 16; `humidity` is the index 1–5, 5 = driest."""

    kind: AmsKind
    id: int
    spools: list[Spool | None] = field(default_factory=list)
    humidity: int = 5
    humidity_percent: int = 16
    temperature: float = 26.2
    dry_minutes: float = 0.0
    extruder: int = 0

    def __post_init__(self) -> None:
        room = 1 if self.kind is AmsKind.HT else 4
        if len(self.spools) > room:
            raise ValueError(f"{self.kind} holds {room} spools, not {len(self.spools)}")
        self.spools = [*self.spools, *[None] * (room - len(self.spools))]

    @property
    def has_sensor(self) -> bool:
        return self.kind is not AmsKind.LITE

    @property
    def first_bit(self) -> int:
        """Bit of the unit's first slot in `tray_exist_bits`."""
        if self.kind is AmsKind.HT:
            return 16 + self.id - 128
        return 24 if self.id == A2L_UNIT else self.id * 4

    @property
    def bit(self) -> int:
        """Bit of the unit in `ams_exist_bits`."""
        return 4 + self.id - 128 if self.kind is AmsKind.HT else self.first_bit // 4


def default_spools() -> list[Spool | None]:
    return [
        Spool("PLA", "FFFFFFFF"),
        Spool("PLA", "000000FF", grams_left=620.0),
        Spool("PLA", "C12E1FFF", grams_left=340.0),
        Spool("PETG", "FF6A13FF", grams_left=870.0, brand="PETG HF", filament_id="GFG02"),
    ]


def fill_units(model: PrinterModel, spools: Sequence[Spool | None]) -> list[AmsUnit]:
    """As many units of the model's own kind as the spools need, four to a unit."""
    first = A2L_UNIT if model.name == "A2L" else 0
    return [
        AmsUnit(model.ams_kind, first + number, list(spools[start : start + 4]))
        for number, start in enumerate(range(0, len(spools), 4))
    ]


def flat_tray(address: Address) -> int:
    """A slot as one number: `ams_id*4+slot`, AMS HT 128 and up, external 254; the A2L's Lite counts locally."""
    ams_id, slot = address
    if ams_id in (254, 255):
        return 254
    if ams_id >= 128:
        return ams_id
    return slot if ams_id == A2L_UNIT else ams_id * 4 + slot


def packed_address(address: Address | None, extruder: int = 0) -> int:
    """`ams_id<<8|slot` as in `device.extruder.info[].snow` and `mapping`; nothing is 0xFFFF or, left, 0xFEFF."""
    if address is None:
        return 0xFEFF if extruder == 1 else 0xFFFF
    return address[0] << 8 | address[1]


def tray_report(
    model: PrinterModel, slot: int, spool: Spool | None, *, remain_known: bool, is_unread: bool = False
) -> dict[str, Any]:
    """One `tray` object."""
    if spool is not None and is_unread:
        return {"id": str(slot), "state": 5} if model.tray_detail else {"id": str(slot)}
    if spool is None:
        return {"id": str(slot), "state": 0} if not model.classic else {"id": str(slot)}
    report = _filament(model, spool)
    report["id"] = str(slot)
    report["remain"] = _shown_remain(model, spool, remain_known=remain_known)
    if model.tray_detail:
        report["state"] = 3 if model.classic else 11
        report["total_len"] = 330000
    return report


def external_report(model: PrinterModel, shown_id: str, spool: Spool | None) -> dict[str, Any]:
    """`vt_tray` or an entry of `vir_slot`; its `remain` is always 0."""
    report = _filament(model, spool or Spool("", "00000000", 0.0, 0.0, rfid=False, brand="", filament_id=""))
    if model.classic:
        del report["ctype"], report["cols"]
    else:
        report["total_len"] = 330000
    return {**report, "id": shown_id, "remain": 0}


def _filament(model: PrinterModel, spool: Spool) -> dict[str, Any]:
    usual = _temperatures.get(spool.material, (190, 240)) if spool.material else (0, 0)
    coolest, hottest = spool.nozzle_temps or usual
    drying = ("tray_temp", "tray_time") if model.classic else ("drying_temp", "drying_time")
    pressure: dict[str, Any] = {"k": 0.019999999552965164, "n": 1} if model.classic else {}
    return {
        **pressure,
        "tag_uid": f"{spool.uuid[:8]}00000100" if spool.rfid else NO_TAG,
        "tray_uuid": spool.uuid if spool.rfid else NO_UUID,
        "tray_id_name": "A00-W1" if spool.rfid else "",
        "tray_info_idx": spool.filament_id,
        "tray_type": spool.material,
        "tray_sub_brands": spool.brand if spool.rfid else "",
        "tray_color": spool.color,
        "tray_weight": f"{spool.grams_full:.0f}" if spool.rfid else "0",
        "tray_diameter": "1.75" if spool.rfid or not model.classic else "0.00",
        drying[0]: "55" if spool.rfid else "0",
        drying[1]: "8" if spool.rfid else "0",
        "bed_temp_type": "0",
        "bed_temp": "0",
        "nozzle_temp_max": str(hottest),
        "nozzle_temp_min": str(coolest),
        "xcam_info": "0" * 24,
        "cali_idx": -1,
        "ctype": 0,
        "cols": [spool.color],
    }


def _shown_remain(model: PrinterModel, spool: Spool, *, remain_known: bool) -> int:
    if spool.rfid:
        return spool.remain_percent if remain_known else -1
    return model.remain_without_tag


def unit_report(
    model: PrinterModel, unit: AmsUnit, *, remain_known: bool, unread: Collection[int] = ()
) -> dict[str, Any]:
    """One entry of `ams.ams`; the tags of the spools in the slots `unread` are still being read."""
    trays = [
        tray_report(model, slot, spool, remain_known=remain_known, is_unread=slot in unread)
        for slot, spool in enumerate(unit.spools)
    ]
    report: dict[str, Any] = {
        "id": str(unit.id),
        "humidity": str(unit.humidity),
        "temp": f"{unit.temperature:.1f}" if unit.has_sensor and model.tray_detail else "0.0",
        "tray": trays,
    }
    if model.tray_detail:
        report["humidity_raw"] = str(unit.humidity_percent) if unit.has_sensor else "0"
        report["dry_time"] = int(unit.dry_minutes)
        report["info"] = f"{0x1000 | unit.extruder << 8 | _info_nibble[unit.kind]:x}"
    if model.tray_detail and model.classic:
        report["check"] = 0
        report["chip_id"] = f"{unit.id:031x}"
    return report
