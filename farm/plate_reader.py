"""The process that reads a stranger's file: it can open nothing, write nothing, and neither last nor grow.

It is started by `farm.print_files` with the file as its standard input, and answers on its standard output: JSON with
"plates" or "refused", or the bytes of a PNG. Imports little, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import encodings.cp437
import gc
import importlib.util
import json
import re
import sys
from typing import Any

from farm.png import clean_png
from farm.sliced_archive import Refused, SlicedArchive
from farm.slicer_words import MAX_FILAMENTS, describe, read_comments, read_settings, read_slice_info

PLATE_PART = re.compile(r"Metadata/plate_([1-9][0-9]{0,2})\.gcode", re.ASCII)
MODEL_PART = "3D/3dmodel.model"
SLICE_INFO = "Metadata/slice_info.config"
SETTINGS = "Metadata/project_settings.config"
MAX_PART_BYTES = 4 * 1024 * 1024
MAX_PICTURE_BYTES = 2 * 1024 * 1024
MAX_PLATES = 100
MAX_TEXT = 200
MEMORY_BYTES = 256 * 1024 * 1024
CPU_SECONDS = 25
# Standard input, output and error are all that may be open: no file, no socket, no library any more.
MAX_OPEN = 3
# Old zips name their parts in this; it has to be there before nothing can be opened any more.
NAMES_OF_OLD_ZIPS = encodings.cp437


def limit() -> None:
    """From here on little is allowed. Where a platform cannot limit it, the bounds of the code itself still hold."""
    if importlib.util.find_spec("resource") is None:
        return
    resource: Any = importlib.import_module("resource")
    for what, amount in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (amount, amount))


def read_plates(archive: SlicedArchive) -> list[dict[str, object]]:
    """Each sliced plate by the names of `PlateFacts`.

    Raises:
        Refused: never sliced, damaged or absurd.
    """
    numbers = sorted(int(match[1]) for name in archive.names if (match := PLATE_PART.fullmatch(name)))
    if not numbers and MODEL_PART in archive:
        raise Refused("This project was never sliced. Slice it and export the sliced file (.gcode.3mf).")
    if not numbers:
        raise Refused("This zip holds no sliced plate (Metadata/plate_N.gcode).")
    if len(numbers) > MAX_PLATES:
        raise Refused("This file holds too many plates.")
    stated = read_slice_info(archive.read(SLICE_INFO, MAX_PART_BYTES)) if SLICE_INFO in archive else {}
    settings = _settings(archive, SETTINGS)
    found: list[dict[str, object]] = []
    for number in numbers:
        comments = read_comments(*archive.read_text_ends(f"Metadata/plate_{number}.gcode"))
        layout = _settings(archive, f"Metadata/plate_{number}.json")
        facts = describe(number, stated.get(str(number), {}), settings, layout, comments)
        found.append({**_shortened(facts), "has_thumbnail": read_picture(archive, number) is not None})
    return found


def _shortened(said: Any) -> Any:
    """No fact needs a longer text than this."""
    if isinstance(said, dict):
        return {name: _shortened(value) for name, value in said.items()}
    if isinstance(said, list):
        return [_shortened(value) for value in said[:MAX_FILAMENTS]]
    return said[:MAX_TEXT] if isinstance(said, str) else said


def read_picture(archive: SlicedArchive, plate: int) -> bytes | None:
    """The picture of a plate as a sound PNG, or None."""
    name = f"Metadata/plate_{plate}.png"
    if name not in archive:
        return None
    try:
        return clean_png(archive.read(name, MAX_PICTURE_BYTES))
    except Refused:
        return None


def _settings(archive: SlicedArchive, name: str) -> dict[str, object]:
    return read_settings(archive.read(name, MAX_PART_BYTES)) if name in archive else {}


def main(words: list[str]) -> int:
    """`plates` or `picture N`. The exit status is 0 for an answer, whatever it says."""
    limit()
    # It ends before there is anything to collect; looking for it would take most of its time in a file full of lists.
    gc.disable()
    answer = b""
    try:
        archive = SlicedArchive(sys.stdin.buffer)
        if words[0] == "picture":
            answer = read_picture(archive, int(words[1])) or b""
        else:
            answer = json.dumps({"plates": read_plates(archive)}).encode()
    except Refused as refused:
        answer = json.dumps({"refused": str(refused)}).encode() if words[0] == "plates" else b""
    except (MemoryError, RecursionError):
        return 1
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    return 0
