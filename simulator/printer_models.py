"""The printers that can be simulated, one row each: what differs between them on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Wire(StrEnum):
    """Which set of report keys a printer sends."""

    CLASSIC = "classic"
    """P1, A1: about 64 flat keys, compact JSON, deltas, `vt_tray`."""
    MODERN = "modern"
    """X1 from 01.09, P2S, H2, X2D, A2L: about 97 keys with `device.*`."""


class Cadence(StrEnum):
    """How a printer reports by itself."""

    DELTAS = "deltas"
    FULL = "full"
    MIXED = "mixed"
    """Partial objects on a change and a full one every few seconds."""


class AmsKind(StrEnum):
    AMS = "ams"
    LITE = "ams lite"
    PRO_2 = "ams 2 pro"
    HT = "ams ht"


@dataclass(frozen=True)
class PrinterModel:
    """One model.

    `fun` is the capability mask with bit 29 clear (Developer Mode on), or None where the model does not send it.
    `extras` names the keys that only some models of its wire have. `start_lag_seconds` is how long the old state stays
    after an accepted start. `modules` are (name, hardware version, firmware) of `get_version` besides `ota` and the AMS
    units. `old_versions`: `get_version` has `project_name` instead of `product_name`. `guards_files`: without Developer
    Mode uploads are refused too. `busy_start_cancels`: a start while printing is refused and ends the print.
    """

    name: str
    serial_prefix: str
    slice_ids: tuple[str, ...]
    firmware: str
    wire: Wire
    cadence: Cadence
    modules: tuple[tuple[str, str, str], ...]
    ams_kind: AmsKind
    tray_detail: bool = True
    remain_without_tag: int = -1
    old_versions: bool = False
    nozzles: int = 1
    nozzle_type: str = "HS01"
    chamber_heater: bool = False
    chamber_sensor: bool = False
    fun: int | None = None
    extras: frozenset[str] = frozenset()
    start_lag_seconds: float = 2.0
    warms_up_as: str = "PREPARE"
    sends_msg: bool = True
    pretty_json: bool = False
    newest_tls_is_1_3: bool = False
    guards_files: bool = False
    busy_start_cancels: bool = False
    lights: tuple[str, ...] = ("chamber_light",)
    product_name: str = ""

    @property
    def shown_name(self) -> str:
        return self.product_name or f"Bambu Lab {self.name}"

    @property
    def classic(self) -> bool:
        return self.wire is Wire.CLASSIC


_P1_MODULES = (("esp32", "AP04", "01.11.34.50"), ("mc", "MC07", "00.00.29.90"), ("th", "TH09", "00.00.09.95"))
_A1_MODULES = (("esp32", "AP05", "01.16.39.58"), ("mc", "MC02", "00.01.30.10"), ("th", "TH03", "00.00.07.72"))
_X1_MODULES = (
    ("ahb", "AHB01", "00.00.00.43"),
    ("mc", "MC07", "00.00.32.89"),
    ("mc-sub", "N/A", "00.00.32.89"),
    ("th", "TH09", "00.00.07.12"),
    ("rv1126", "AP05", "00.00.50.76"),
)
_X1E_MODULES = (*_X1_MODULES[:-1], ("ap", "AP02", "00.00.32.18"))
_P2_MODULES = (
    ("ahb", "AHB-N703", "01.00.11.61"),
    ("th", "TH03", "02.00.20.82"),
    ("smc", "SMC01", "02.00.13.93"),
    ("mc", "MC06", "01.00.69.85"),
    ("ap", "AP04", "00.00.69.32"),
)
_H2_MODULES = (
    ("ahb", "AHB02", "02.04.09.70"),
    ("mc-sub", "N/A", "02.00.65.20"),
    ("th", "TH04", "02.00.19.33"),
    ("smc", "SMC09", "02.01.12.02"),
    ("mc", "MC09", "02.00.65.20"),
    ("ap", "AP05", "00.00.65.32"),
)
_X2_MODULES = (
    ("ahb", "AHB-N602", "02.00.17.18"),
    ("eef", "EEF01", "00.00.13.35"),
    ("th", "TH06", "02.00.27.16"),
    ("smc", "SMC03", "02.00.18.23"),
    ("mc", "MC12", "02.00.90.74"),
    ("ap2", "AP04", "00.00.36.49"),
)
_A2_MODULES = (("mc", "MC14", "01.00.10.02"), ("th", "TH10", "01.00.04.11"), ("ap", "AP03", "00.00.71.05"))

_X1_EXTRAS = frozenset({"info", "t_utc", "vt_tray", "vir_slot"})
_P2_EXTRAS = frozenset({"3D", "fun2", "info", "lan_task_id", "stg_cd", "t_utc", "vir_slot"})
_H2S_EXTRAS = frozenset({"2D", "3D", "info", "lan_task_id", "t_utc", "vir_slot"})
_H2D_EXTRAS = frozenset({"2D", "3D", "chamber_temper", "ctt", "lan_task_id", "maintain", "vir_slot", "vt_tray"})
_X2_EXTRAS = frozenset({"2D", "3D", "err2", "fun2", "info", "lan_task_id", "stg_cd", "vir_slot"})
_A2_EXTRAS = frozenset({"3D", "chamber_temper", "fun2", "lan_task_id", "vir_slot"})

_H2_LIGHTS = ("chamber_light", "work_light", "chamber_light2")
_X1_LIGHTS = ("chamber_light", "work_light")
_H2_FUN = 0x3EC18FFF9CFF
_X1_FUN = 0x11830F9CFB


def _x1(name: str, prefix: str, slice_id: str, product_name: str = "") -> PrinterModel:
    return PrinterModel(
        name,
        prefix,
        (slice_id,),
        "01.09.01.00",
        Wire.MODERN,
        Cadence.FULL,
        _X1E_MODULES if name == "X1E" else _X1_MODULES,
        AmsKind.AMS,
        nozzle_type="hardened_steel",
        chamber_sensor=True,
        chamber_heater=name == "X1E",
        fun=_X1_FUN,
        extras=_X1_EXTRAS,
        start_lag_seconds=3.0,
        pretty_json=True,
        lights=_X1_LIGHTS,
        product_name=product_name,
    )


def _p1(name: str, prefix: str, slice_id: str, nozzle_type: str) -> PrinterModel:
    return PrinterModel(
        name,
        prefix,
        (slice_id,),
        "01.08.02.00",
        Wire.CLASSIC,
        Cadence.DELTAS,
        _P1_MODULES,
        AmsKind.AMS,
        tray_detail=False,
        old_versions=True,
        nozzle_type=nozzle_type,
    )


def _a1(name: str, prefix: str, slice_id: str, *, old: bool) -> PrinterModel:
    return PrinterModel(
        name,
        prefix,
        (slice_id,),
        "01.05.00.00" if old else "01.07.02.00",
        Wire.CLASSIC,
        Cadence.DELTAS,
        _A1_MODULES,
        AmsKind.LITE,
        tray_detail=not old,
        remain_without_tag=100 if old else -1,
        old_versions=old,
        nozzle_type="stainless_steel",
        extras=frozenset({"xcam"}),
        busy_start_cancels=name == "A1 mini",
    )


def _h2(
    name: str,
    prefix: str,
    slice_ids: tuple[str, ...],
    nozzles: int,
    extras: frozenset[str],
    start_lag_seconds: float = 3.0,
    modules: tuple[tuple[str, str, str], ...] = _H2_MODULES,
) -> PrinterModel:
    return PrinterModel(
        name,
        prefix,
        slice_ids,
        "01.02.00.00",
        Wire.MODERN,
        Cadence.MIXED,
        modules,
        AmsKind.PRO_2,
        nozzles=nozzles,
        chamber_heater=True,
        chamber_sensor=True,
        fun=_H2_FUN,
        extras=extras,
        start_lag_seconds=start_lag_seconds,
        warms_up_as="RUNNING",
        sends_msg=nozzles == 1,
        pretty_json=True,
        guards_files=True,
        lights=_H2_LIGHTS,
    )


_ROWS = (
    _x1("X1C", "00M", "BL-P001", "Bambu Lab X1-Carbon"),
    _x1("X1", "00W", "BL-P002"),
    _x1("X1E", "03W", "C13"),
    _p1("P1P", "01S", "C11", "stainless_steel"),
    _p1("P1S", "01P", "C12", "stainless_steel"),
    _a1("A1 mini", "030", "N1", old=False),
    _a1("A1", "039", "N2S", old=True),
    PrinterModel(
        "A2L",
        "26A",
        ("N9",),
        "01.00.02.00",
        Wire.MODERN,
        Cadence.MIXED,
        _A2_MODULES,
        AmsKind.LITE,
        fun=0x29F803F9C97,
        extras=_A2_EXTRAS,
        warms_up_as="RUNNING",
    ),
    PrinterModel(
        "P2S",
        "22E",
        ("N7",),
        "01.02.00.00",
        Wire.MODERN,
        Cadence.FULL,
        _P2_MODULES,
        AmsKind.PRO_2,
        chamber_sensor=True,
        fun=0x60029FD183FF9CB7,
        extras=_P2_EXTRAS,
        start_lag_seconds=2.9,
        warms_up_as="RUNNING",
        newest_tls_is_1_3=True,
        lights=_X1_LIGHTS,
    ),
    _h2("H2S", "093", ("O1S",), 1, _H2S_EXTRAS),
    _h2("H2D", "094", ("O1D",), 2, _H2D_EXTRAS),
    _h2("H2D Pro", "239", ("O1E", "O2D"), 2, _H2D_EXTRAS, start_lag_seconds=80.0),
    _h2("H2C", "31B", ("O1C", "O1C2"), 2, _H2D_EXTRAS, modules=(*_H2_MODULES, ("wtm/16", "WTM01", "00.00.03.10"))),
    PrinterModel(
        "X2D",
        "20P",
        ("N6",),
        "01.01.00.00",
        Wire.MODERN,
        Cadence.FULL,
        _X2_MODULES,
        AmsKind.PRO_2,
        nozzles=2,
        chamber_heater=True,
        chamber_sensor=True,
        fun=0x40029FD1930F9CB7,
        extras=_X2_EXTRAS,
        start_lag_seconds=3.0,
        warms_up_as="RUNNING",
        lights=_X1_LIGHTS,
    ),
)

models: dict[str, PrinterModel] = {row.name: row for row in _ROWS}


def find_model(name: str) -> PrinterModel:
    """The row of that name, in any case and with or without spaces.

    Raises ValueError, naming the models there are.
    """
    wanted = name.replace(" ", "").replace("-", "").casefold()
    for row in _ROWS:
        if row.name.replace(" ", "").casefold() == wanted:
            return row
    raise ValueError(f"no printer model {name!r}; there are {', '.join(models)}")
