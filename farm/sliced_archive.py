"""The zip around a sliced file, looked at before anything in it is believed. Runs in the reader's process.

Readers of zips differ in what they make of a crooked one, so a crooked one is refused: what we checked has to be what
the printer sees. Nothing is ever written to a disk.
"""

from __future__ import annotations

import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

MAX_MEMBERS = 10_000
MAX_DIRECTORY_BYTES = 4 * 1024 * 1024
MAX_UNPACKED_BYTES = 2 * 1024 * 1024 * 1024
# G-code packs to a fifth or a tenth; what shrinks to a five-hundredth was made to swell.
MAX_RATIO = 200
FREE_RATIO_BYTES = 1024 * 1024
MAX_NAME = 255
CHUNK_BYTES = 256 * 1024
HEAD_BYTES = 256 * 1024
TAIL_BYTES = 64 * 1024
END_RECORD = struct.Struct("<4s4H2LH")
END_RECORD_64 = struct.Struct("<4sQ2H2L4Q")
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
LOCATOR_64_BYTES = 20
# After a part may stand its sizes once more, in at most so many bytes.
MAX_DESCRIPTOR_BYTES = 24
ENCRYPTED, STREAMED, STRONGLY_ENCRYPTED, UTF_8, MASKED = 0x1, 0x8, 0x40, 0x800, 0x2000
UNKNOWN_COUNT, UNKNOWN_SIZE = 0xFFFF, 0xFFFFFFFF
UNREADABLE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
NO_ZIP = "This is not a 3MF file (not a zip, or a damaged one)."
DAMAGED = "This file is damaged: what it holds does not match its own checksums."


class Refused(Exception):
    """Why a file is not taken, in words for a person. Never with a word of the file in it."""


class SlicedArchive:
    """A zip that has passed every check of its form; its parts are read by name, each up to a limit.

    Raises:
        Refused: not a zip, or one of a kind that no slicer makes.
    """

    def __init__(self, file: BinaryIO) -> None:
        try:
            count = _check_end(file)
            self._archive = zipfile.ZipFile(file)
            members = self._archive.infolist()
            if len(members) != count:
                raise Refused(NO_ZIP)
            _check_members(members)
            _check_places(file, members, self._archive.start_dir)
        except UNREADABLE:
            raise Refused(NO_ZIP) from None
        self._members = {member.filename: member for member in members}

    @property
    def names(self) -> Iterator[str]:
        """The parts that hold anything."""
        return (name for name, member in self._members.items() if member.file_size)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def read(self, name: str, limit: int) -> bytes:
        """The whole of one part.

        Raises:
            Refused: larger than `limit`, or damaged.
        """
        if self._members[name].file_size > limit:
            raise Refused("A part of this file that should be small is absurdly large.")
        try:
            with self._archive.open(self._members[name]) as part:
                content = part.read()
        except UNREADABLE:
            raise Refused(DAMAGED) from None
        if len(content) != self._members[name].file_size:
            raise Refused(DAMAGED)
        return content

    def read_text_ends(self, name: str) -> tuple[bytes, bytes]:
        """(head, tail) of a part that is text, however large: it is read to its end, and its checksum holds.

        Raises:
            Refused: damaged, or no text.
        """
        head, tail, size = b"", b"", 0
        try:
            with self._archive.open(self._members[name]) as part:
                while chunk := part.read(CHUNK_BYTES):
                    if b"\0" in chunk:
                        raise Refused("The G-code of this file is not text.")
                    size += len(chunk)
                    head = head or chunk
                    tail = chunk if len(chunk) >= TAIL_BYTES else (tail + chunk)[-TAIL_BYTES:]
        except UNREADABLE:
            raise Refused(DAMAGED) from None
        if size != self._members[name].file_size:
            raise Refused(DAMAGED)
        return head[:HEAD_BYTES], tail[-TAIL_BYTES:]


def _check_end(file: BinaryIO) -> int:
    """How many parts the record at a zip's end promises. Looked at before a library believes it: it is the end, and the
    directory is not endless."""
    if file.read(4) != b"PK\3\4":
        # An empty zip is one record and nothing else.
        file.seek(0)
        if file.read(4) != b"PK\5\6":
            raise Refused(NO_ZIP)
    size = file.seek(0, 2)
    start = max(0, size - END_RECORD.size - 0xFFFF)
    file.seek(start)
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise Refused(NO_ZIP)
    _, _, _, _, count, directory_bytes, offset, comment_bytes = END_RECORD.unpack_from(tail, place)
    if place + END_RECORD.size + comment_bytes != len(tail):
        raise Refused("This file goes on after the end of its zip.")
    if UNKNOWN_SIZE in (directory_bytes, offset) or count == UNKNOWN_COUNT:
        file.seek(start + place - LOCATOR_64_BYTES - END_RECORD_64.size)
        _, _, _, _, _, _, _, count, directory_bytes, _ = END_RECORD_64.unpack(file.read(END_RECORD_64.size))
    if directory_bytes > MAX_DIRECTORY_BYTES or count > MAX_MEMBERS:
        raise Refused("This file holds too many parts.")
    return int(count)


def _check_members(members: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for member in members:
        _check_name(member)
        folded = unicodedata.normalize("NFC", member.filename).casefold()
        if folded in seen:
            raise Refused("This file holds the same part twice.")
        seen.add(folded)
        if member.flag_bits & (ENCRYPTED | STRONGLY_ENCRYPTED | MASKED):
            raise Refused("This file is encrypted.")
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused("This file holds a link or a special file.")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused("This file is packed in a way that slicers do not use.")
        if member.is_dir() and (member.file_size or member.compress_size):
            raise Refused("A part of this file is not what its directory says.")
        if member.file_size > FREE_RATIO_BYTES + MAX_RATIO * member.compress_size:
            raise Refused("This file swells absurdly when it is unpacked.")
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise Refused("This file is too large when it is unpacked.")


def _check_name(member: zipfile.ZipInfo) -> None:
    name = member.orig_filename
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
        raise Refused("This file holds paths that lead out of it.")
    is_strange = any(unicodedata.category(each)[0] == "C" or each in "\\\u2028\u2029" for each in name)
    if is_strange or not name or len(name) > MAX_NAME or name != member.filename:
        raise Refused("This file holds a part with an unusable name.")


def _check_places(file: BinaryIO, members: list[zipfile.ZipInfo], directory_at: int) -> None:
    """Each part lies behind the one before it and says of itself what the directory says; nothing lies between."""
    end, slack = 0, 0
    for member in sorted(members, key=lambda each: each.header_offset):
        if member.header_offset < end:
            raise Refused("Parts of this file lie in each other.")
        if member.header_offset > end + slack:
            raise Refused("This file holds something between its parts.")
        file.seek(member.header_offset)
        signature, _, flags, method, _, _, _, packed, size, name_bytes, extra_bytes = LOCAL_HEADER.unpack(
            file.read(LOCAL_HEADER.size)
        )
        name = file.read(name_bytes).decode("utf-8" if flags & UTF_8 else "cp437")
        is_streamed = bool(flags & STREAMED)
        if (
            signature != b"PK\3\4"
            or name != member.orig_filename
            or method != member.compress_type
            or flags & (ENCRYPTED | STRONGLY_ENCRYPTED | MASKED)
            or not (is_streamed or packed in (member.compress_size, UNKNOWN_SIZE))
            or not (is_streamed or size in (member.file_size, UNKNOWN_SIZE))
        ):
            raise Refused("A part of this file is not what its directory says.")
        end = member.header_offset + LOCAL_HEADER.size + name_bytes + extra_bytes + member.compress_size
        slack = MAX_DESCRIPTOR_BYTES if is_streamed else 0
    if end > directory_at:
        raise Refused("Parts of this file lie in each other.")
    if directory_at > end + slack:
        raise Refused("This file holds something between its parts.")
