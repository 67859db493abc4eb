"""The picture of what a print puts on the plate, small enough to go along with a mail."""

from __future__ import annotations

from pathlib import Path

from farm.plate_facts import known_plate
from farm.png import SIGNATURE
from farm.print_files import path_of, read_picture
from models import ScheduledPrint

# Slicers draw 512 pixels a side in some 100 kB; mail servers on the way take no more than a few megabytes in all.
MAX_BYTES = 500_000


def picture_of(of_print: ScheduledPrint, files_dir: Path) -> bytes | None:
    """The slicer's picture of the print's plate: a sound PNG of at most 500,000 bytes with nothing else in it, or None.

    None too where the print has no file, the file has no such plate or picture, or its bytes are gone. The file is
    hostile, and is read in a process of its own: in some 50 ms, and for 28 seconds at the most.
    """
    file = of_print.print_file
    if file is None:
        return None
    facts = known_plate(file.plates, of_print.plate)
    if facts is not None and not facts.has_thumbnail:
        return None
    picture = read_picture(path_of(file, files_dir), of_print.plate)
    if picture is None or len(picture) > MAX_BYTES or not picture.startswith(SIGNATURE):
        return None
    return picture
