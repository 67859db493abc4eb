"""Sliced files: taken in, kept under their checksum, and what the slicer wrote about each of their plates.

A file is hostile input. It is never unpacked, and never read in this process: `farm.plate_reader` does that in one of
its own, which may open nothing and ends by itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import defusedxml
import sqlalchemy as sa
import structlog

from farm.plate_facts import PlateFacts as PlateFacts
from farm.plate_facts import PlateFilament as PlateFilament
from farm.plate_facts import is_read, known_plate
from farm.plate_reader import MAX_PICTURE_BYTES
from models import PrintFile, User, db

log = structlog.get_logger()

CHUNK_BYTES = 1024 * 1024
READER_SECONDS = 28.0
MAX_FACTS_BYTES = 256 * 1024
# Each reader may take a processor and 256 MB for its time.
MAX_READERS = 4
_READERS = threading.BoundedSemaphore(MAX_READERS)
# Nothing of the installation but our own code and the XML reader: no `site`, whose files may run anything.
READER = (
    *(sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c"),
    "import sys; sys.path += sys.argv[1:3]; from farm.plate_reader import main; sys.exit(main(sys.argv[3:]))",
    str(Path(__file__).parent.parent),
    str(Path(defusedxml.__file__).parent.parent),
)


class NotPrintable(Exception):
    """Not a sliced file that a printer could print; the message says why in words for a person."""


class FileTooLarge(Exception):
    """More bytes than the limit came in."""


def folder_of(files_dir: Path, user_id: int) -> Path:
    """A folder per user: what one user deletes can never be what another one uploaded."""
    return files_dir / str(user_id)


def path_of(file: PrintFile, files_dir: Path) -> Path:
    """Where its bytes lie. The name is their checksum, so what lies there is what was checked."""
    return folder_of(files_dir, file.user_id) / file.sha256


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    """An upload that has been checked and lies in a draft."""

    sha256: str
    size_bytes: int
    plates: tuple[PlateFacts, ...]
    draft: Path

    def keep(self) -> None:
        """Give it its name. Only with `lock_files` held, after its row: else a delete may take the bytes away."""
        self.draft.rename(self.draft.parent / self.sha256)
        descriptor = os.open(self.draft.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def received(stream: BinaryIO, folder: Path, *, max_bytes: int) -> Iterator[ReceivedFile]:
    """Take in an upload and check it. Unless it is kept, nothing is left behind.

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
        yield ReceivedFile(digest.hexdigest(), size, read_plates(draft), draft)
    finally:
        draft.unlink(missing_ok=True)


def lock_files(user_id: int) -> None:
    """Until this transaction ends, nobody else names or takes away the bytes of this user's files."""
    db.session.execute(sa.select(User.id).where(User.id == user_id).with_for_update(key_share=True))


def drop_bytes(path: Path, user_id: int) -> None:
    """Take the bytes of a deleted row off the disk, unless the same bytes were uploaded again meanwhile.

    A transaction of its own, after the one that deleted the row: bytes without a row are waste, a row without bytes
    would be a lie.
    """
    lock_files(user_id)
    is_there_again = db.session.execute(
        sa.select(sa.exists().where(PrintFile.user_id == user_id, PrintFile.sha256 == path.name))
    ).scalar_one()
    if not is_there_again:
        path.unlink(missing_ok=True)
    db.session.rollback()


def plate_numbers(file: PrintFile) -> list[int]:
    return [entry["plate"] for entry in file.plates]


def plate_of(file: PrintFile, plate: int, files_dir: Path) -> PlateFacts:
    """What is known of a plate. From the row; a file that was uploaded before plates were read is read now, once.

    Raises:
        NotPrintable: the file has no such plate; or it has to be read, and is gone or not what we take today.
    """
    describe(file, files_dir)
    facts = known_plate(file.plates, plate)
    if facts is None:
        raise NotPrintable(f"The file has no plate {plate}.")
    return facts


def describe(file: PrintFile, files_dir: Path) -> bool:
    """Read a file whose row says only the numbers of its plates. Whether the row was changed; does not flush.

    Raises:
        NotPrintable: see `read_plates`.
    """
    if all(is_read(entry) for entry in file.plates):
        return False
    file.plates = [facts.to_json() for facts in read_plates(path_of(file, files_dir))]
    return True


def read_plates(path: Path) -> tuple[PlateFacts, ...]:
    """What the slicer wrote about each plate of a file, read in a process of its own; at most 28 seconds.

    Raises:
        NotPrintable: gone, no zip, no 3MF, never sliced, damaged, crooked or absurd.
    """
    answer = json.loads(_ask_reader(path, MAX_FACTS_BYTES, "plates"))
    if "refused" in answer:
        raise NotPrintable(answer["refused"])
    return tuple(PlateFacts.from_stranger(plate) for plate in answer["plates"])


def read_picture(path: Path, plate: int) -> bytes | None:
    """The slicer's picture of a plate: a sound PNG of at most 2 MB with nothing but the picture in it, or None."""
    try:
        return _ask_reader(path, MAX_PICTURE_BYTES, "picture", str(plate)) or None
    except NotPrintable:
        return None


def _ask_reader(path: Path, max_bytes: int, *words: str) -> bytes:
    """The answer of a reader's process, of at most `max_bytes`.

    Raises:
        NotPrintable: the file is gone; or the reader ended without an answer, was too slow, or would not stop talking.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed by the `with` below, which must not catch what the reader raises
    except OSError:
        raise NotPrintable("The uploaded file is gone from our storage.") from None
    with file, _READERS:
        answer, status = run_bounded((*READER, *words), file, max_bytes=max_bytes, seconds=READER_SECONDS)
    if status != 0 or len(answer) > max_bytes:
        log.warning("file_not_read", status=status, answer_bytes=len(answer))
        raise NotPrintable("This file takes too much time or memory to read.")
    return answer


def run_bounded(command: Sequence[str], stdin: BinaryIO, *, max_bytes: int, seconds: float) -> tuple[bytes, int]:
    """(what it wrote, at most a byte more than allowed; its exit status, negative when it was killed).

    The process gets nothing of our environment, and is killed when its time is up or when it says too much.
    """
    with subprocess.Popen(
        command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/"
    ) as reader:
        deadline = threading.Timer(seconds, reader.kill)
        deadline.start()
        try:
            assert reader.stdout is not None
            answer = reader.stdout.read(max_bytes + 1)
            if len(answer) > max_bytes:
                reader.kill()
            status = reader.wait()
        finally:
            deadline.cancel()
            reader.kill()
    return answer, status
