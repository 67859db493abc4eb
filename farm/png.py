"""A picture out of a stranger's file -> the same picture with nothing else in it, or nothing. Pure."""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_SIDE_PIXELS = 2048
# What a picture needs to be seen; texts, profiles, animations and whatever is hidden after the end are left out.
KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"sRGB", b"gAMA", b"IDAT", b"IEND"})
# Samples per pixel and the depths that go with them, by colour type.
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def clean_png(data: bytes) -> bytes | None:
    """The PNG of at most 2,048 pixels a side without what is not picture; None when it is not a whole, sound one."""
    if not data.startswith(SIGNATURE):
        return None
    kept, pixels, header = [SIGNATURE], [], b""
    place = len(SIGNATURE)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        body = data[place + 8 : place + 8 + length]
        checksum = data[place + 8 + length : place + 12 + length]
        if checksum != zlib.crc32(kind + body).to_bytes(4, "big"):
            return None
        if (kind == b"IHDR") != (len(kept) == 1):
            return None
        if kind == b"IHDR":
            header = body
        elif kind == b"IDAT":
            pixels.append(body)
        if kind in KEPT:
            kept.append(data[place : place + 12 + length])
        elif not kind[0] & 0x20:
            # A part that a reader must understand, and none that we know.
            return None
        place += 12 + length
        if kind == b"IEND":
            return b"".join(kept) if length == 0 and _is_whole(header, pixels) else None
    return None


def _is_whole(header: bytes, pixels: list[bytes]) -> bool:
    """The pixels unpack to exactly what the header says: no picture that swells in a browser."""
    if len(header) != 13:
        return False
    width, height, depth, color_type, compression, filtering, interlace = struct.unpack(">IIBBBBB", header)
    if not (0 < width <= MAX_SIDE_PIXELS and 0 < height <= MAX_SIDE_PIXELS) or compression or filtering or interlace:
        return False
    if depth not in DEPTHS.get(color_type, ()):
        return False
    expected = height * (1 + (width * depth * SAMPLES[color_type] + 7) // 8)
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(b"".join(pixels), expected + 1)
    except zlib.error:
        return False
    return len(unpacked) == expected and unpacker.eof
