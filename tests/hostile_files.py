"""Files that somebody might upload to harm the farm, made in code. Each is a good sliced file but for one thing."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator import Plate, make_sliced_file
from simulator.sliced_file import make_png, make_unsliced_project

GCODE = "Metadata/plate_1.gcode"
SLICE_INFO = "Metadata/slice_info.config"
SETTINGS = "Metadata/project_settings.config"
LAYOUT = "Metadata/plate_1.json"
PICTURE = "Metadata/plate_1.png"
# Wherever a part of this name turns up, something was unpacked.
ESCAPED = "escaped-from-a-3mf"


@dataclass
class Part:
    """One part of a zip, with what may be a lie about it. `local`: where its own header differs."""

    name: bytes
    content: bytes = b""
    method: int = 8
    flags: int = 0x800
    attributes: int = 0
    packed: bytes | None = None
    size: int | None = None
    crc: int | None = None
    local: dict[str, Any] = field(default_factory=dict)
    gap: bytes = b""
    at: int | None = None
    extra: bytes = b""


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


def raw_zip(
    parts: list[Part], *, count: int | None = None, comment: bytes = b"", before_directory: bytes = b""
) -> bytes:
    """A zip written by hand, so that it can be as crooked as its parts."""
    body, directory, places = bytearray(), bytearray(), []
    for part in parts:
        packed = part.packed if part.packed is not None else deflated(part.content)
        size = len(part.content) if part.size is None else part.size
        crc = zlib.crc32(part.content) if part.crc is None else part.crc
        body += part.gap
        places.append(len(body) if part.at is None else places[part.at])
        if part.at is None:
            own = {"name": part.name, "packed": len(packed), "size": size, "flags": part.flags, "method": part.method}
            own |= part.local
            body += struct.pack(
                *("<4s5H3L2H", b"PK\3\4", 20, own["flags"], own["method"], 0, 0x5000, crc, own["packed"]),
                *(min(own["size"], 0xFFFFFFFF), len(own["name"]), 0),
            )
            body += own["name"] + packed
        directory += struct.pack(
            *("<4s6H3L5H2L", b"PK\1\2", 0x031E, 20, part.flags, part.method, 0, 0x5000, crc, len(packed)),
            *(min(size, 0xFFFFFFFF), len(part.name), len(part.extra), 0, 0, 0, part.attributes, places[-1]),
        )
        directory += part.name + part.extra
    body += before_directory
    stated = len(parts) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, stated, stated, len(directory), len(body), len(comment))
    return bytes(body + directory + end + comment)


def good_parts() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(make_sliced_file(None, [Plate(minutes=30)]))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def with_parts(*, method: int = zipfile.ZIP_DEFLATED, **changed: bytes | None) -> bytes:
    """A good file with these parts instead of its own, or without them. Unpacked ones cannot swell."""
    return _zip({**good_parts(), **{NAMES[name]: content for name, content in changed.items()}}, method)


NAMES = {"gcode": GCODE, "slice_info": SLICE_INFO, "settings": SETTINGS, "layout": LAYOUT, "picture": PICTURE}


def _zip(parts: Mapping[str, bytes | None], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in parts.items():
            if content is not None:
                archive.writestr(name, content)
    return target.getvalue()


def with_extra(*parts: Part) -> bytes:
    """A good file with these crooked parts at its end."""
    return raw_zip([*(Part(name.encode(), content) for name, content in good_parts().items()), *parts])


def with_gcode(**changes: Any) -> bytes:
    """A good file whose G-code is crooked in this way."""
    parts = [Part(name.encode(), content) for name, content in good_parts().items()]
    for part in parts:
        if part.name == GCODE.encode():
            for name, value in changes.items():
                setattr(part, name, value)
    return raw_zip(parts)


def slice_info(filament: str = "", metadata: str = "", head: str = "", after: str = "") -> bytes:
    """A description of plate 1, with the usual filament unless others are given, and with whatever else there."""
    usual = '<filament id="1" type="PLA" color="#FFFFFF" used_m="6.7" used_g="20"/>'
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>{head}<config><plate><metadata key="index" value="1"/>{metadata}'
        f"{filament or usual}</plate>{after}</config>"
    ).encode()


def picture(width: int, height: int, rows: bytes, after: bytes = b"", *texts: bytes) -> bytes:
    """A PNG that says it is so large, of these rows, with texts in it and something after its end."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    inside = b"".join(chunk(b"tEXt", b"Comment\0" + text) for text in texts)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + inside + pixels + chunk(b"IEND", b"") + after


SCRIPT = b"<html><script>alert(document.domain)</script></html>"
NESTED = _zip({"bomb.zip": _zip({"zeros": bytes(1_000_000)})})
LAUGHS = "<!DOCTYPE lolz [" + '<!ENTITY a "ha">'
LAUGHS += (
    "".join(f'<!ENTITY {"abcdefghij"[n]} "{("&" + "abcdefghij"[n - 1] + ";") * 10}">' for n in range(1, 10)) + "]>"
)
HOSTILE_TEXTS = (
    "&lt;svg onload=alert(1)&gt;",
    "\u202egnp.exe\u2066",
    "{{7*7}}${jndi:ldap://x}",
    "'; DROP TABLE users; --",
    "&#x9b;31m\u2028\ufeffPLA",
    "=cmd|' /C calc'!A0",
)
OBJECTS = b'{"a": [' + b'{"":[]},' * 520_000 + b"[]]}"
LISTS = b'{"a": [' + b"[]," * 1_390_000 + b"[]]}"
KNOWN = {"print_minutes": 30, "grams": 20, "nozzle_temp": 220, "bed_temp": 65, "has_thumbnail": True}

NOT_A_ZIP = "not a 3MF"
LEADS_OUT = "lead out of it"
UNUSABLE = "unusable name"
CROOKED = "not what its directory says"
DAMAGED = "is damaged"
SWELLS = "swells absurdly"
ABSURD = "absurdly large"
UNDESCRIBED = "cannot be read"
BEYOND = "too much time or memory"


def _numbers(value: str) -> bytes:
    plain = f'<metadata key="prediction" value="{value}"/><metadata key="weight" value="{value}"/>'
    return slice_info(f'<filament id="1" type="PLA" used_g="{value}" used_m="{value}"/>', plain)


def _good() -> bytes:
    return make_sliced_file(None, [Plate(minutes=30)])


def _parts_without_end(count: int, size: int) -> bytes:
    packed = deflated(bytes(size))
    crc = zlib.crc32(bytes(size))
    return with_extra(*(Part(f"x/{number}".encode(), packed=packed, size=size, crc=crc) for number in range(count)))


def _huge_64() -> bytes:
    extra = struct.pack("<2HQ", 1, 8, 2**63 - 1)
    return with_gcode(size=2**40, extra=extra, local={"size": 0xFFFFFFFF})


def _lines_without_end() -> bytes:
    """A G-code whose one line is a comment that nearly is every comment we look for."""
    return with_parts(method=0, gcode=b"; total estimated time: " * 400_000)


# By name: how to make it; what its refusal says, or None when it is taken; and what is told of its first plate then.
CASES: dict[str, tuple[Callable[[], bytes], str | None, Mapping[str, Any]]] = {
    # What is no zip, or more than one thing at once.
    "nothing": (lambda: b"", NOT_A_ZIP, {}),
    "text": (lambda: b"G28\nG1 X10\n", NOT_A_ZIP, {}),
    "half of it": (lambda: _good()[: len(_good()) // 2], NOT_A_ZIP, {}),
    "without its last bytes": (lambda: _good()[:-10], NOT_A_ZIP, {}),
    "a page before it": (lambda: SCRIPT + _good(), NOT_A_ZIP, {}),
    "a script after it": (lambda: _good() + b"\n#!/bin/sh\nrm -rf /\n", "after the end", {}),
    "a page between its parts": (lambda: with_extra(Part(b"x", b"x", gap=SCRIPT)), "between its parts", {}),
    "a page before its directory": (
        lambda: raw_zip([Part(GCODE.encode(), b"G28\n")], before_directory=SCRIPT),
        "between its parts",
        {},
    ),
    "a second zip in its comment": (
        lambda: raw_zip([Part(GCODE.encode(), b"G28\n")], comment=_good()),
        "between its parts",
        {},
    ),
    "an end that lies about the count": (lambda: raw_zip([Part(GCODE.encode(), b"G28\n")], count=9), NOT_A_ZIP, {}),
    "never sliced": (lambda: make_unsliced_project(None, [Plate()]), "never sliced", {}),
    # Parts that are not where or what they say.
    "two parts in one place": (
        lambda: with_extra(Part(b"y", b"y" * 50), Part(b"z", b"y" * 50, at=-1)),
        "each other",
        {},
    ),
    "another name inside": (lambda: with_gcode(local={"name": b"Metadata/plate_1.gc0de"}), CROOKED, {}),
    "another size inside": (lambda: with_gcode(local={"size": 5}), CROOKED, {}),
    "another packing inside": (lambda: with_gcode(local={"method": 0}), CROOKED, {}),
    "more than it says": (lambda: with_gcode(size=10), DAMAGED, {}),
    "less than it says": (lambda: with_gcode(size=100_000), DAMAGED, {}),
    "a wrong checksum": (lambda: with_gcode(crc=1), DAMAGED, {}),
    "no packed data at all": (lambda: with_gcode(packed=b"\xff" * 500), DAMAGED, {}),
    "a packed folder": (lambda: with_extra(Part(b"Metadata/plate_2.gcode/", b"G28\n")), CROOKED, {}),
    "encrypted": (lambda: with_gcode(flags=0x801), "encrypted", {}),
    "strongly encrypted": (lambda: with_gcode(flags=0x841), "encrypted", {}),
    "a hidden directory": (lambda: with_gcode(flags=0x2800), "encrypted", {}),
    "packed as bzip2": (lambda: with_gcode(method=12), "slicers do not use", {}),
    "packed as lzma": (lambda: with_gcode(method=14), "slicers do not use", {}),
    "packed as nobody knows": (lambda: with_gcode(method=99), "slicers do not use", {}),
    "the same part twice": (lambda: with_extra(Part(GCODE.encode(), b"M104 S500\n")), "same part twice", {}),
    "the same part in capitals": (lambda: with_extra(Part(GCODE.upper().encode(), b"M104 S500\n")), "part twice", {}),
    # Names that lead somewhere.
    "up and out": (lambda: with_extra(Part(f"../../../../{ESCAPED}".encode(), b"x")), LEADS_OUT, {}),
    "from the root": (lambda: with_extra(Part(f"/tmp/{ESCAPED}".encode(), b"x")), LEADS_OUT, {}),
    "from the root of a drive": (lambda: with_extra(Part(f"C:/{ESCAPED}".encode(), b"x")), LEADS_OUT, {}),
    "backwards and out": (lambda: with_extra(Part(f"a\\..\\..\\{ESCAPED}".encode(), b"x")), LEADS_OUT, {}),
    "a link": (lambda: with_extra(Part(ESCAPED.encode(), b"/etc/passwd", attributes=0o120777 << 16)), "a link", {}),
    "a pipe": (lambda: with_extra(Part(ESCAPED.encode(), b"", attributes=0o010666 << 16)), "a special file", {}),
    "a disk": (lambda: with_extra(Part(ESCAPED.encode(), b"", attributes=0o060666 << 16)), "a special file", {}),
    "a name with an end in it": (lambda: with_extra(Part(b"x.png\0.exe", b"x")), UNUSABLE, {}),
    "a name that steers the screen": (lambda: with_extra(Part(b"\x1b[2J\r\nx", b"x")), UNUSABLE, {}),
    "a name that runs backwards": (lambda: with_extra(Part("\u202egpj.exe".encode(), b"x")), UNUSABLE, {}),
    "an endless name": (lambda: with_extra(Part(b"x" * 5000, b"x")), UNUSABLE, {}),
    "no name": (lambda: with_extra(Part(b"", b"x")), UNUSABLE, {}),
    # Too much.
    "one part that swells": (lambda: with_parts(gcode=bytes(b"G1 X1\n" * 20_000_000)), SWELLS, {}),
    "many parts that swell": (lambda: _parts_without_end(3000, 1_000_000), "too large when", {}),
    "exabytes": (_huge_64, SWELLS, {}),
    "too many parts": (lambda: raw_zip([Part(f"{number}".encode()) for number in range(10_001)]), "too many parts", {}),
    "an endless directory": (
        lambda: with_extra(*(Part(b"%d" % number + b"y" * 60_000) for number in range(80))),
        "too many parts",
        {},
    ),
    "a zip in place of G-code": (lambda: with_parts(gcode=NESTED), "not text", {}),
    "a program in place of G-code": (lambda: with_parts(gcode=b"\x7fELF\2\1\1" + bytes(64)), "not text", {}),
    "a zip beside the rest": (lambda: with_extra(Part(b"Auxiliaries/x.zip", NESTED)), None, KNOWN),
    "too many plates": (
        lambda: raw_zip([Part(f"Metadata/plate_{number}.gcode".encode(), b"G28\n") for number in range(1, 102)]),
        "too many plates",
        {},
    ),
    "a comment without end": (_lines_without_end, None, KNOWN),
    # The description of the plates.
    "a billion laughs": (lambda: with_parts(slice_info=slice_info(head=LAUGHS, metadata="&j;")), UNDESCRIBED, {}),
    "an entity that is a file": (
        lambda: with_parts(
            slice_info=slice_info(head='<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>', metadata="&x;")
        ),
        UNDESCRIBED,
        {},
    ),
    "a document type from afar": (
        lambda: with_parts(slice_info=slice_info(head='<!DOCTYPE x SYSTEM "http://127.0.0.1:9/x.dtd">')),
        UNDESCRIBED,
        {},
    ),
    "a very deep description": (
        lambda: with_parts(slice_info=slice_info(after="<a>" * 100_000 + "</a>" * 100_000)),
        ABSURD,
        {},
    ),
    "a very long description": (
        lambda: with_parts(method=0, slice_info=slice_info(after="<a/>" * 1_000_000)),
        ABSURD,
        {},
    ),
    "an endless description": (lambda: with_parts(method=0, slice_info=slice_info(after=" " * 5_000_000)), ABSURD, {}),
    "half a description": (lambda: with_parts(slice_info=slice_info()[:-9]), UNDESCRIBED, {}),
    "a description in no alphabet": (
        lambda: with_parts(slice_info=slice_info().replace(b"UTF-8", b"UTF-7")),
        UNDESCRIBED,
        {},
    ),
    "one plate described twice": (
        lambda: with_parts(slice_info=slice_info(after='<plate><metadata key="index" value="1"/></plate>')),
        "one plate twice",
        {},
    ),
    **{
        f"numbers such as {value[:12]}": (
            lambda value=value: with_parts(slice_info=_numbers(value), gcode=b"G28\n"),  # type: ignore[misc]
            None,
            {"print_minutes": None, "grams": None, "filament_grams": [None]},
        )
        for value in ("NaN", "Infinity", "-5", "1e999", "9" * 3000, "٣٣", "0x10", "1e12")
    },
    "filaments of no number": (
        lambda: with_parts(
            slice_info=slice_info(
                "".join(f'<filament id="{each}" used_g="1"/>' for each in ("0", "-1", "65536", "", "x"))
            )
        ),
        None,
        {"filament_ids": []},
    ),
    "a thousand filaments": (
        lambda: with_parts(slice_info=slice_info("".join(f'<filament id="{each}"/>' for each in range(1, 1001)))),
        None,
        {"filament_ids": list(range(1, 65))},
    ),
    **{
        f"the text {number}": (
            lambda text=text: with_parts(  # type: ignore[misc]
                slice_info=slice_info(
                    f'<filament id="1" type="{text}" color="{text}" tray_info_idx="{text}"/>',
                    f'<metadata key="printer_model_id" value="{text}"/>',
                )
            ),
            None,
            {"is_clean": True},
        )
        for number, text in enumerate(HOSTILE_TEXTS, 1)
    },
    # The settings, and what lies on the plate.
    "very deep settings": (lambda: with_parts(settings=b"[" * 100_000, layout=b'{"a":' * 100_000), None, KNOWN),
    "settings that are a list": (lambda: with_parts(settings=b"[1]", layout=b"null"), None, KNOWN),
    "settings that are no numbers": (
        lambda: with_parts(
            settings=json.dumps(
                {"nozzle_temperature": [float("nan"), {}], "textured_plate_temp": {"a": 1}, "curr_bed_type": 5}
            ).encode(),
            layout=b'{"bed_type": ["x"], "first_extruder": 1e400}',
            gcode=b"G28\n",
        ),
        None,
        {"nozzle_temp": None, "bed_temp": None, "bed_type": None},
    ),
    "a number of a million digits": (
        lambda: with_parts(settings=b'{"nozzle_temperature": [%s]}' % (b"9" * 1_000_000)),
        None,
        {"nozzle_temp": None},
    ),
    "absurd temperatures": (
        lambda: with_parts(settings=b'{"nozzle_temperature": ["9999"], "textured_plate_temp": ["-40"]}'),
        None,
        {"nozzle_temp": None, "bed_temp": None},
    ),
    "endless settings": (lambda: with_parts(method=0, settings=b" " * 5_000_000), ABSURD, {}),
    "as many lists as there is room for": (
        lambda: with_parts(method=0, settings=LISTS),
        None,
        KNOWN,
    ),
    "more objects than there is room for": (
        lambda: with_parts(method=0, settings=OBJECTS, layout=OBJECTS),
        BEYOND,
        {},
    ),
    # The picture.
    "a page in place of a picture": (lambda: with_parts(picture=SCRIPT), None, {"has_thumbnail": False}),
    "a picture that swells": (
        lambda: with_parts(picture=picture(16, 16, bytes(3_000_000))),
        None,
        {"has_thumbnail": False},
    ),
    "a picture without end": (
        lambda: with_parts(picture=picture(30_000, 30_000, bytes(1000))),
        None,
        {"has_thumbnail": False},
    ),
    "a picture wider than any screen": (
        lambda: with_parts(picture=picture(4096, 1, bytes(1 + 4 * 4096))),
        None,
        {"has_thumbnail": False},
    ),
    "a picture with a wrong checksum": (
        lambda: with_parts(picture=make_png()[:-1] + b"x"),
        None,
        {"has_thumbnail": False},
    ),
    "half a picture": (lambda: with_parts(picture=make_png()[:-20]), None, {"has_thumbnail": False}),
    "a picture with more behind it": (
        lambda: with_parts(picture=picture(4, 4, bytes(4 * 17), SCRIPT + NESTED, SCRIPT)),
        None,
        {"has_thumbnail": True},
    ),
}
