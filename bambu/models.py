"""The Bambu Lab printer models: how each names itself, and what it can measure.

A printer tells its model three ways: the first three characters of its serial number, the product name in its version
report, and a short code that slicers write into a sliced file (`C12` is a P1S). Source: the makers' files and public
captures; some public tables swap N1 and N2S or read C11/C12 as X1, which is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrinterModel:
    """One model. `codes` are what a sliced file and the network discovery call it, upper case."""

    name: str
    codes: tuple[str, ...]
    serial_prefixes: tuple[str, ...]
    has_chamber_sensor: bool = True
    has_door_sensor: bool = True
    nozzles: int = 1
    may_need_clear_data: bool = False  # some firmware hangs when the file channel is encrypted
    max_nozzle_temp: int = 300  # °C, by the maker's data sheets; the bed's on the weaker mains where there are two
    max_bed_temp: int = 110


MODELS: tuple[PrinterModel, ...] = (
    PrinterModel("X1 Carbon", ("BL-P001", "3DPRINTER-X1-CARBON"), ("00M",)),
    PrinterModel("X1", ("BL-P002", "3DPRINTER-X1"), ("00W",)),
    PrinterModel("X1E", ("C13",), ("03W",), max_nozzle_temp=320),
    PrinterModel("P1P", ("C11",), ("01S",), has_chamber_sensor=False, has_door_sensor=False, max_bed_temp=100),
    PrinterModel("P1S", ("C12",), ("01P",), has_chamber_sensor=False, has_door_sensor=False, max_bed_temp=100),
    PrinterModel(
        "A1 mini",
        ("N1",),
        ("030",),
        has_chamber_sensor=False,
        has_door_sensor=False,
        may_need_clear_data=True,
        max_bed_temp=80,
    ),
    PrinterModel(
        "A1",
        ("N2S",),
        ("039",),
        has_chamber_sensor=False,
        has_door_sensor=False,
        may_need_clear_data=True,
        max_bed_temp=100,
    ),
    PrinterModel("A2L", ("N9",), ("26A",), has_chamber_sensor=False, has_door_sensor=False, max_bed_temp=100),
    PrinterModel("P2S", ("N7",), ("22E",)),
    PrinterModel("H2S", ("O1S",), ("093",), max_nozzle_temp=350, max_bed_temp=120),
    PrinterModel("H2D", ("O1D",), ("094",), nozzles=2, max_nozzle_temp=350, max_bed_temp=120),
    PrinterModel("H2D Pro", ("O1E", "O2D"), ("239",), nozzles=2, max_nozzle_temp=350, max_bed_temp=120),
    PrinterModel("H2C", ("O1C", "O1C2"), ("31B",), nozzles=2, max_nozzle_temp=350, max_bed_temp=120),
    PrinterModel("X2D", ("N6",), ("20P",), nozzles=2),
)

_BY_NAME = {model.name.lower().replace(" ", ""): model for model in MODELS}
_BY_CODE = {code: model for model in MODELS for code in model.codes}
_BY_PREFIX = {prefix: model for model in MODELS for prefix in model.serial_prefixes}


def model_of_serial(serial: str) -> PrinterModel | None:
    """The model a serial number belongs to, or None for one we have not met."""
    return _BY_PREFIX.get(serial.strip()[:3].upper())


def model_of_code(code: str) -> PrinterModel | None:
    """The model behind a slicer's or a discovery's code such as `C12` or `BL-P001`."""
    return _BY_CODE.get(code.strip().upper())


def model_of_name(name: str) -> PrinterModel | None:
    """The model behind a product name in any of its spellings: `Bambu Lab X1-Carbon`, `X1 Carbon`, `a1mini`, `X1C`."""
    plain = "".join(character for character in name.lower() if character.isascii() and character.isalnum())
    plain = plain.removeprefix("bambulab")
    return _BY_NAME.get({"x1c": "x1carbon", "h2dp": "h2dpro"}.get(plain, plain))
