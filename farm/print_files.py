"""A sliced `.gcode.3mf` -> which plates it holds. The file is hostile input: its directory is read, nothing unpacked.

Source of the layout: the `Metadata/plate_N.gcode` members that Bambu Studio and OrcaSlicer write.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import ParseError

import defusedxml.ElementTree
from defusedxml.common import DefusedXmlException

PLATE_MEMBER = re.compile(r"Metadata/plate_([1-9][0-9]{0,2})\.gcode", re.ASCII)
MODEL_MEMBER = "3D/3dmodel.model"
SLICE_INFO = "Metadata/slice_info.config"
MAX_SLICE_INFO_BYTES = 4 * 1024 * 1024
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
        int(match[1])
        for member in members
        if (match := PLATE_MEMBER.fullmatch(member.filename)) and member.file_size > 0
    )
    if not plates:
        if MODEL_MEMBER in names:
            raise NotPrintable("This project was never sliced. Slice it and export the sliced file (.gcode.3mf).")
        raise NotPrintable("This zip holds no sliced plate (Metadata/plate_N.gcode).")
    return plates


@dataclass(frozen=True, slots=True)
class PlateFacts:
    """What a start must know of a plate. `filament_ids`: the slicer's numbers of the filaments it uses, from 1."""

    filament_ids: tuple[int, ...]
    model_id: str | None


def read_plate(path: Path, plate: int) -> PlateFacts:
    """What the slicer wrote about one plate of a stored file.

    Raises:
        NotPrintable: the file or the plate is gone, or its description cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(SLICE_INFO).file_size > MAX_SLICE_INFO_BYTES:
                raise NotPrintable("The description of the plates is absurdly large.")
            with archive.open(SLICE_INFO) as member:
                root = defusedxml.ElementTree.fromstring(member.read(MAX_SLICE_INFO_BYTES))
    except KeyError:
        raise NotPrintable("The file does not say what its plates use (slice_info.config is missing).") from None
    except (OSError, zipfile.BadZipFile, zlib.error, ParseError, DefusedXmlException, RuntimeError, EOFError):
        raise NotPrintable("The file is not readable any more.") from None
    for found in root.iter("plate"):
        metadata = {each.get("key"): each.get("value") for each in found.iter("metadata")}
        if metadata.get("index") == str(plate):
            ids = (each.get("id", "") for each in found.iter("filament"))
            numbers = sorted({int(each) for each in ids if each.isascii() and each.isdigit() and 1 <= int(each) <= 64})
            return PlateFacts(tuple(numbers), metadata.get("printer_model_id"))
    raise NotPrintable(f"The file does not describe plate {plate}.")
