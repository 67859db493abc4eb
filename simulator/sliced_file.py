"""Small but whole `.gcode.3mf` files, made in code, with every member a reader of sliced files looks at.

The same arguments give the same bytes, so that a test may compare checksums.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import quoteattr

type_temperatures = {
    "PLA": (220, 65),
    "PETG": (255, 70),
    "ABS": (270, 100),
    "ASA": (270, 100),
    "TPU": (230, 45),
    "PA-CF": (290, 100),
}
filament_ids = {"PLA": "GFA00", "PETG": "GFG00", "ABS": "GFB00", "ASA": "GFB01", "TPU": "GFU01", "PA-CF": "GFN04"}
plate_names = {
    "cool_plate": "Cool Plate",
    "eng_plate": "Engineering Plate",
    "hot_plate": "High Temp Plate",
    "textured_plate": "Textured PEI Plate",
    "supertack_plate": "Supertack Plate",
}
printer_names = {
    "BL-P001": "Bambu Lab X1 Carbon",
    "BL-P002": "Bambu Lab X1",
    "C13": "Bambu Lab X1E",
    "C11": "Bambu Lab P1P",
    "C12": "Bambu Lab P1S",
    "N1": "Bambu Lab A1 mini",
    "N2S": "Bambu Lab A1",
    "N9": "Bambu Lab A2L",
    "N7": "Bambu Lab P2S",
    "O1S": "Bambu Lab H2S",
    "O1D": "Bambu Lab H2D",
    "O1E": "Bambu Lab H2D Pro",
    "O1C": "Bambu Lab H2C",
    "N6": "Bambu Lab X2D",
}

Filament = tuple[str, str, float, float]
"""(type, colour `#RRGGBB`, grams, metres)."""


@dataclass(frozen=True)
class Plate:
    """One sliced plate.

    `filaments` lists the project's filaments in order; None stands for one this plate does not use, which leaves a gap
    in the 1-based ids as real files have. `layers` defaults to two a minute.
    """

    index: int = 1
    minutes: float = 60.0
    filaments: Sequence[Filament | None] = field(default_factory=lambda: (("PLA", "#FFFFFF", 20.0, 6.7),))
    layers: int | None = None
    objects: Sequence[str] = ("Part",)

    @property
    def prediction_seconds(self) -> int:
        return round(self.minutes * 60)

    @property
    def layer_count(self) -> int:
        return self.layers if self.layers is not None else max(1, round(self.minutes * 2))

    @property
    def used(self) -> list[tuple[int, Filament]]:
        """(1-based id, filament) of those the plate uses."""
        return [(position, item) for position, item in enumerate(self.filaments, start=1) if item is not None]

    @property
    def grams(self) -> float:
        return sum(item[2] for _, item in self.used)


def make_sliced_file(
    path: Path | str | None = None,
    plates: Sequence[Plate] = (Plate(),),
    model_id: str = "C12",
    nozzle_diameter: str = "0.4",
    bed_type: str = "textured_plate",
) -> bytes:
    """A sliced file with these plates; written to `path` too when one is given.

    `model_id` is the slicer's `printer_model_id` (C12 = P1S, N2S = A1, O1D = H2D …).
    """
    members: dict[str, bytes] = {}
    for plate in plates:
        stem = f"Metadata/plate_{plate.index}"
        gcode = _gcode(plate, model_id, nozzle_diameter, bed_type).encode()
        members[f"{stem}.gcode"] = gcode
        members[f"{stem}.gcode.md5"] = hashlib.md5(gcode, usedforsecurity=False).hexdigest().upper().encode()
        members[f"{stem}.json"] = json.dumps(_plate_json(plate, bed_type, nozzle_diameter)).encode()
    members["Metadata/slice_info.config"] = _slice_info(plates, model_id, nozzle_diameter).encode()
    return _write(path, plates, model_id, nozzle_diameter, bed_type, members, sliced=True)


def make_unsliced_project(
    path: Path | str | None = None,
    plates: Sequence[Plate] = (Plate(),),
    model_id: str = "C12",
    nozzle_diameter: str = "0.4",
    bed_type: str = "textured_plate",
) -> bytes:
    """A project as saved before slicing: no `plate_N.gcode`, nothing a printer could print."""
    header_only = _slice_info((), model_id, nozzle_diameter).encode()
    members = {"Metadata/slice_info.config": header_only}
    return _write(path, plates, model_id, nozzle_diameter, bed_type, members, sliced=False)


def make_png(color: str = "#808080", side_pixels: int = 48) -> bytes:
    """A valid PNG: one square of `color` (`#RRGGBB`) on a transparent border."""
    rgb = bytes.fromhex(color.lstrip("#")[:6])
    border = side_pixels // 8
    clear = b"\0\0\0\0"
    blank = b"\0" + clear * side_pixels
    filled = b"\0" + clear * border + (rgb + b"\xff") * (side_pixels - 2 * border) + clear * border
    rows = blank * border + filled * (side_pixels - 2 * border) + blank * border
    header = struct.pack(">IIBBBBB", side_pixels, side_pixels, 8, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _write(
    path: Path | str | None,
    plates: Sequence[Plate],
    model_id: str,
    nozzle_diameter: str,
    bed_type: str,
    members: dict[str, bytes],
    *,
    sliced: bool,
) -> bytes:
    members = {
        "[Content_Types].xml": _CONTENT_TYPES.encode(),
        "_rels/.rels": _RELATIONSHIPS.encode(),
        "3D/3dmodel.model": _MODEL.encode(),
        "Metadata/project_settings.config": json.dumps(
            _project_settings(plates, model_id, nozzle_diameter, bed_type), indent=4
        ).encode(),
        "Metadata/model_settings.config": _model_settings(plates, sliced=sliced).encode(),
        **members,
    }
    for plate in plates:
        picture = make_png(plate.used[0][1][1] if plate.used else "#808080")
        members[f"Metadata/plate_{plate.index}.png"] = picture
        members[f"Metadata/plate_{plate.index}_small.png"] = picture
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            entry = zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, body)
    data = target.getvalue()
    if path is not None:
        Path(path).write_bytes(data)
    return data


def _clock_text(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    parts = [f"{hours}h"] if hours else []
    parts += [f"{minutes}m"] if minutes else []
    return " ".join([*parts, f"{left}s"])


def _gcode(plate: Plate, model_id: str, nozzle_diameter: str, bed_type: str) -> str:
    used = [item for _, item in plate.used]
    nozzle, bed = type_temperatures.get(used[0][0], (220, 60)) if used else (220, 60)
    settings = _project_settings((plate,), model_id, nozzle_diameter, bed_type)
    return "\n".join(
        [
            "; HEADER_BLOCK_START",
            "; BambuStudio 02.03.00.70",
            f"; model printing time: {_clock_text(plate.prediction_seconds * 0.95)}; "
            f"total estimated time: {_clock_text(plate.prediction_seconds)}",
            f"; total layer number: {plate.layer_count}",
            f"; total filament length [mm] : {','.join(f'{item[3] * 1000:.2f}' for item in used)}",
            f"; total filament weight [g] : {','.join(f'{item[2]:.2f}' for item in used)}",
            f"; filament: {','.join(str(position) for position, _ in plate.used)}",
            "; HEADER_BLOCK_END",
            "",
            "; CONFIG_BLOCK_START",
            *(f"; {key} = {_config_text(key, value)}" for key, value in sorted(settings.items())),
            "; CONFIG_BLOCK_END",
            "",
            f"M140 S{bed}",
            f"M104 S{nozzle}",
            "G28",
            *(f"; CHANGE_LAYER\nG1 Z{0.2 * layer:.1f} F600" for layer in range(1, min(plate.layer_count, 50) + 1)),
            "M104 S0",
            "M140 S0",
            "",
        ]
    )


def _config_text(key: str, value: object) -> str:
    """A setting as a slicer writes it into a G-code: texts with semicolons between them, numbers with commas."""
    is_text = key in ("filament_type", "filament_colour", "filament_ids")
    return (";" if is_text else ",").join(value) if isinstance(value, list) else str(value)


def _plate_json(plate: Plate, bed_type: str, nozzle_diameter: str) -> dict[str, object]:
    return {
        "bbox_all": [80.0, 80.0, 176.0, 176.0],
        "bbox_objects": [
            {"area": 900.0, "bbox": [80.0, 80.0, 110.0, 110.0], "id": number, "layer_height": 0.2, "name": name}
            for number, name in enumerate(plate.objects, start=1)
        ],
        "bed_type": bed_type,
        "filament_colors": [item[1] for _, item in plate.used],
        "filament_ids": [position - 1 for position, _ in plate.used],
        "first_extruder": plate.used[0][0] - 1 if plate.used else 0,
        "first_layer_time": 60.0,
        "is_seq_print": False,
        "nozzle_diameter": float(nozzle_diameter.split(",")[0]),
        "version": 2,
    }


def _slice_info(plates: Sequence[Plate], model_id: str, nozzle_diameter: str) -> str:
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        "<config>",
        "  <header>",
        '    <header_item key="X-BBL-Client-Type" value="slicer"/>',
        '    <header_item key="X-BBL-Client-Version" value="02.03.00.70"/>',
        "  </header>",
    ]
    for plate in plates:
        facts = {
            "index": plate.index,
            "printer_model_id": model_id,
            "nozzle_diameters": nozzle_diameter,
            "timelapse_type": 0,
            "prediction": plate.prediction_seconds,
            "weight": f"{plate.grams:.2f}",
            "first_layer_time": "60.0",
            "outside": "false",
            "support_used": "false",
            "label_object_enabled": "true",
        }
        lines.append("  <plate>")
        lines += [f"    <metadata key={quoteattr(key)} value={quoteattr(str(value))}/>" for key, value in facts.items()]
        lines += [
            f'    <object identify_id="{100 + number}" name={quoteattr(name)} skipped="false" />'
            for number, name in enumerate(plate.objects)
        ]
        lines += [
            f'    <filament id="{position}" tray_info_idx="{filament_ids.get(item[0], "GFL99")}" '
            f'type={quoteattr(item[0])} color={quoteattr(item[1])} used_m="{item[3]:.2f}" used_g="{item[2]:.2f}" />'
            for position, item in plate.used
        ]
        lines += [
            "    <layer_filament_lists>",
            f'      <layer_filament_list filament_list="{" ".join(str(position - 1) for position, _ in plate.used)}" '
            f'layer_ranges="0 {plate.layer_count - 1}" />',
            "    </layer_filament_lists>",
            "  </plate>",
        ]
    return "\n".join([*lines, "</config>", ""])


def _project_settings(plates: Sequence[Plate], model_id: str, nozzle_diameter: str, bed_type: str) -> dict[str, object]:
    longest = max((len(plate.filaments) for plate in plates), default=0)
    filaments: list[Filament] = []
    for position in range(longest):
        found = (plate.filaments[position] for plate in plates if position < len(plate.filaments))
        filaments.append(next((item for item in found if item is not None), ("PLA", "#FFFFFF", 0.0, 0.0)))
    warmth = [type_temperatures.get(item[0], (220, 60)) for item in filaments]
    nozzle = [str(pair[0]) for pair in warmth]
    bed = [str(pair[1]) for pair in warmth]
    beds = ("cool_plate_temp", "eng_plate_temp", "hot_plate_temp", "textured_plate_temp", "supertack_plate_temp")
    return {
        "printer_model": printer_names.get(model_id, "Bambu Lab P1S"),
        "curr_bed_type": plate_names.get(bed_type, "Textured PEI Plate"),
        "nozzle_diameter": nozzle_diameter.split(","),
        "filament_type": [item[0] for item in filaments],
        "filament_colour": [item[1] for item in filaments],
        "filament_ids": [filament_ids.get(item[0], "GFL99") for item in filaments],
        "nozzle_temperature": nozzle,
        "nozzle_temperature_initial_layer": nozzle,
        **dict.fromkeys(beds, bed),
        **{f"{name}_initial_layer": bed for name in beds},
        "bed_temperature_formula": "by_first_filament",
        "layer_height": "0.2",
        "version": "02.03.00.70",
    }


def _model_settings(plates: Sequence[Plate], *, sliced: bool) -> str:
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', "<config>"]
    lines += ['  <object id="1">', '    <metadata key="name" value="Part"/>', "  </object>"]
    for plate in plates:
        facts = {
            "plater_id": str(plate.index),
            "plater_name": "",
            "locked": "false",
            "gcode_file": f"Metadata/plate_{plate.index}.gcode" if sliced else "",
            "thumbnail_file": f"Metadata/plate_{plate.index}.png",
        }
        lines.append("  <plate>")
        lines += [f'    <metadata key="{key}" value={quoteattr(value)}/>' for key, value in facts.items()]
        lines.append("  </plate>")
    return "\n".join([*lines, "</config>", ""])


_CONTENT_TYPES = """<?xml version="1.0" encoding="UTF-8"?>
<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">
 <Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
 <Default Extension="model" ContentType="application/vnd.ms-package.3dmanufacturing-3dmodel+xml"/>
 <Default Extension="png" ContentType="image/png"/>
 <Default Extension="gcode" ContentType="text/x.gcode"/>
</Types>
"""

_RELATIONSHIPS = """<?xml version="1.0" encoding="UTF-8"?>
<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">
 <Relationship Target="/3D/3dmodel.model" Id="rel-1" Type="http://schemas.microsoft.com/3dmanufacturing/2013/01/3dmodel"/>
</Relationships>
"""

_MODEL = """<?xml version="1.0" encoding="UTF-8"?>
<model unit="millimeter" xml:lang="en-US" xmlns="http://schemas.microsoft.com/3dmanufacturing/core/2015/02">
 <metadata name="Application">BambuStudio-02.03.00.70</metadata>
 <resources>
  <object id="1" type="model"><mesh>
   <vertices>
    <vertex x="0" y="0" z="0"/><vertex x="10" y="0" z="0"/><vertex x="0" y="10" z="0"/><vertex x="0" y="0" z="10"/>
   </vertices>
   <triangles>
    <triangle v1="0" v2="2" v3="1"/><triangle v1="0" v2="1" v3="3"/>
    <triangle v1="1" v2="2" v3="3"/><triangle v1="2" v2="0" v3="3"/>
   </triangles>
  </mesh></object>
 </resources>
 <build><item objectid="1"/></build>
</model>
"""
