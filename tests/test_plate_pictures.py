"""The picture of a plate that goes along with a mail: out of a stranger's file, so sound and small or not at all."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from pathlib import Path

import pytest
from hostile_files import SCRIPT, with_parts

from farm.plate_pictures import MAX_BYTES, picture_of
from farm.print_files import read_plates
from models import PrintFile, ScheduledPrint
from simulator import Plate, make_sliced_file
from simulator.sliced_file import make_png


def stored(folder: Path, content: bytes, *, plate: int = 1, is_described: bool = True) -> ScheduledPrint:
    """A print of a file that lies where an upload would have put it."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = folder / "1" / sha256
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    plates = [facts.to_json() for facts in read_plates(path)] if is_described else [{"plate": plate}]
    file = PrintFile(user_id=1, file_name="vase.gcode.3mf", sha256=sha256, plates=plates)
    return ScheduledPrint(user_id=1, plate=plate, print_file=file)


def noise(side_pixels: int) -> bytes:
    """A sound PNG that does not pack."""
    pixels = random.Random(1)
    rows = b"".join(b"\0" + pixels.randbytes(3 * side_pixels) for _ in range(side_pixels))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", side_pixels, side_pixels, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def test_each_plate_has_its_own_picture(tmp_path: Path) -> None:
    content = make_sliced_file(None, [Plate(index=1), Plate(index=2, filaments=[("PLA", "#FF6A13", 20.0, 6.7)])])
    pictures = [picture_of(stored(tmp_path, content, plate=plate), tmp_path) for plate in (1, 2)]
    assert all(picture is not None and picture.startswith(b"\x89PNG\r\n\x1a\n") for picture in pictures)
    assert pictures[0] != pictures[1]


def test_a_file_of_the_time_before_plates_were_read_has_its_picture_too(tmp_path: Path) -> None:
    assert picture_of(stored(tmp_path, make_sliced_file(), is_described=False), tmp_path) is not None


@pytest.mark.parametrize(("side_pixels", "is_small"), [(400, True), (420, False)])
def test_only_a_small_picture_goes_along(tmp_path: Path, side_pixels: int, is_small: bool) -> None:
    picture = noise(side_pixels)
    assert (len(picture) <= MAX_BYTES) is is_small
    of_print = stored(tmp_path, with_parts(picture=picture))
    assert picture_of(of_print, tmp_path) == (picture if is_small else None)


@pytest.mark.parametrize(
    "picture",
    [SCRIPT, b"", b"\x89PNG\r\n\x1a\n", make_png()[:-20], b"GIF89a" + make_png(), b"\xff\xd8\xff\xe0" + bytes(100)],
)
@pytest.mark.parametrize("is_described", [True, False])
def test_what_is_no_sound_png_is_no_picture(tmp_path: Path, picture: bytes, is_described: bool) -> None:
    of_print = stored(tmp_path, with_parts(picture=picture), is_described=is_described)
    assert picture_of(of_print, tmp_path) is None


def test_nothing_but_the_picture_goes_along(tmp_path: Path) -> None:
    picture = picture_of(stored(tmp_path, with_parts(picture=make_png() + SCRIPT)), tmp_path)
    assert picture is not None and SCRIPT not in picture


def test_without_a_file_or_its_bytes_there_is_no_picture(tmp_path: Path) -> None:
    assert picture_of(ScheduledPrint(user_id=1, plate=1), tmp_path) is None
    of_print = stored(tmp_path, make_sliced_file())
    for path in tmp_path.glob("1/*"):
        path.unlink()
    assert picture_of(of_print, tmp_path) is None
    assert picture_of(stored(tmp_path, make_sliced_file(), plate=7, is_described=False), tmp_path) is None
    assert picture_of(stored(tmp_path, b"no file at all", is_described=False), tmp_path) is None
