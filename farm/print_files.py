"""A sliced `.gcode.3mf` -> which plates it holds. The file is hostile input: its directory is read, nothing unpacked.

Source of the layout: the `Metadata/plate_N.gcode` members that Bambu Studio and OrcaSlicer write.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

PLATE_MEMBER = re.compile(r"Metadata/plate_([1-9][0-9]{0,2})\.gcode", re.ASCII)
MODEL_MEMBER = "3D/3dmodel.model"
MAX_MEMBERS = 10_000
CHUNK_BYTES = 1024 * 1024


class NotPrintable(Exception):
    """Not a sliced file that a printer could print; the message says why in words for a person."""


class FileTooLarge(Exception):
    """More bytes than the limit came in."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    sha256: str
    size_bytes: int
    plates: list[int]


def folder_of(files_dir: Path, user_id: int) -> Path:
    """A folder per user: what one user deletes can never be what another one uploaded."""
    return files_dir / str(user_id)


def store_print_file(stream: BinaryIO, folder: Path, *, max_bytes: int) -> StoredFile:
    """Check an upload and keep it under its sha256 in `folder`; nothing is left behind when it is refused.

    Raises:
        FileTooLarge: it grew beyond `max_bytes`.
        NotPrintable: see `read_plates`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".upload-{secrets.token_hex(8)}"
    digest, size = hashlib.sha256(), 0
    try:
        with open(draft, "xb") as file:
            while chunk := stream.read(CHUNK_BYTES):
                size += len(chunk)
                if size > max_bytes:
                    raise FileTooLarge
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        plates = read_plates(draft)
        draft.rename(folder / digest.hexdigest())
    finally:
        draft.unlink(missing_ok=True)
    return StoredFile(digest.hexdigest(), size, plates)


def read_plates(path: Path) -> list[int]:
    """The numbers of the sliced plates in a file.

    Raises:
        NotPrintable: no zip, no 3MF, never sliced, damaged or absurd.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, OSError, EOFError, NotImplementedError):
        raise NotPrintable("This is not a 3MF file (not a zip, or a damaged one).") from None
    if len(members) > MAX_MEMBERS:
        raise NotPrintable("This file holds too many parts.")
    names = [member.filename for member in members]
    if any(name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) for name in names):
        raise NotPrintable("This file holds paths that lead out of it.")
    if len(set(names)) != len(names):
        raise NotPrintable("This file holds the same part twice.")
    plates = sorted(
        int(match[1]) for member in members if (match := PLATE_MEMBER.fullmatch(member.filename)) and member.file_size > 0
    )
    if not plates:
        if MODEL_MEMBER in names:
            raise NotPrintable("This project was never sliced. Slice it and export the sliced file (.gcode.3mf).")
        raise NotPrintable("This zip holds no sliced plate (Metadata/plate_N.gcode).")
    return plates
