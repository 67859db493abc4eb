"""Sliced files through the API: what is taken, what is refused and leaves nothing, what is kept while it is used."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from farm.print_files import drop_bytes, folder_of, lock_files
from models import IntentState, PrintFile, db
from simulator import Plate, make_sliced_file
from simulator.sliced_file import make_unsliced_project
from tests.apps import another_app
from tests.conftest import Clock
from tests.farm_builder import Farm
from tests.rows import add_intent

PATH = "/api/print-files"
MISSING_ID = 2_000_000_000
CAP = 40_000
# What is told of the simulator's usual plate.
PLATE = {
    "plate": 1,
    "print_minutes": 60,
    "grams": 20,
    "filaments": [
        {
            "filament_id": 1,
            "material_type": "PLA",
            "color": "#FFFFFF",
            "grams": 20,
            "meters": 6.7,
            "nozzle_temp": 220,
            "vendor_profile": "GFA00",
        }
    ],
    "printer_model": "P1S",
    "nozzle_diameters_mm": [0.4],
    "bed_type": "textured_plate",
    "nozzle_temp": 220,
    "bed_temp": 65,
    "has_thumbnail": True,
}


@pytest.fixture
def small_farm(app: Flask, session_database_url: str, tmp_path: Path, clock: Clock) -> Iterator[Farm]:
    """A farm that takes files of up to 40,000 bytes."""
    with another_app(session_database_url, tmp_path, clock, MAX_UPLOAD_BYTES=str(CAP)) as made:
        yield Farm(made, "small@example.com")


def folder(app: Flask, farm: Farm) -> Path:
    return folder_of(app.extensions["parts"].settings.files_dir, farm.user["id"])


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir()) if path.exists() else []


@pytest.fixture
def own_folder(app: Flask, farm: Farm) -> Path:
    """The user's folder of files; emptied, since the databases of tests begin anew and folders do not."""
    path = folder(app, farm)
    for each in path.iterdir() if path.exists() else ():
        each.unlink()
    return path


def zipped(*members: tuple[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return target.getvalue()


def test_an_upload_answers_what_the_file_is(farm: Farm, own_folder: Path) -> None:
    content = make_sliced_file(None, [Plate(1), Plate(3, minutes=94.2)])
    answer = farm.upload(content, "My vase.gcode.3mf")
    digest = hashlib.sha256(content).hexdigest()
    assert (answer.status_code, answer.json) == (
        201,
        {
            "id": answer.json["id"],
            "file_name": "My_vase.gcode.3mf",
            "sha256": digest,
            "size_bytes": len(content),
            "plates": [PLATE, PLATE | {"plate": 3, "print_minutes": 95, "has_thumbnail": True}],
            "created_at": "2026-11-21T09:00:00Z",
        },
    )
    assert farm.get(f"{PATH}/{answer.json['id']}").json == answer.json
    assert farm.get(PATH).json == {"print_files": [answer.json], "total": 1}
    assert names(own_folder) == [digest]
    assert (own_folder / digest).read_bytes() == content


def test_the_same_file_twice_is_the_one_that_is_there(farm: Farm, own_folder: Path) -> None:
    content = make_sliced_file(None, [Plate(minutes=12)])
    first, second = farm.upload(content, "a.3mf"), farm.upload(content, "b.3mf")
    assert (second.status_code, second.json) == (201, first.json)
    assert (farm.get(PATH).json["total"], len(names(own_folder))) == (1, 1)


def test_the_same_file_at_the_same_moment_is_kept_once(farm: Farm, own_folder: Path) -> None:
    content = make_sliced_file(None, [Plate(minutes=13)])
    gate, answers = threading.Barrier(4), []

    def upload() -> None:
        gate.wait()
        answers.append(farm.upload(content))

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json["id"] for answer in answers}) == 1
    assert (farm.get(PATH).json["total"], len(names(own_folder))) == (1, 1)


def test_two_users_keep_the_same_file_apart(app: Flask, farm: Farm, stranger: Farm, own_folder: Path) -> None:
    content = make_sliced_file(None, [Plate(minutes=14)])
    mine, theirs = farm.add_file(content), stranger.add_file(content)
    assert mine["id"] != theirs["id"]
    assert stranger.delete(f"{PATH}/{theirs['id']}").status_code == 200
    assert names(own_folder) == [mine["sha256"]]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\windows\\x.3mf", "Cwindowsx.3mf"),
        ("a b;{{7*7}}<svg>.3mf", "a_b77svg.3mf"),
        ("x" * 300 + ".gcode.3mf", ("x" * 300 + ".gcode.3mf")[-255:]),
        ("\u202e\u0000", "upload.gcode.3mf"),
        (".3mf", "3mf"),
    ],
)
def test_a_files_name_is_never_a_path_nor_a_header(farm: Farm, own_folder: Path, name: str, shown: str) -> None:
    answer = farm.upload(make_sliced_file(None, [Plate()]), name)
    assert (answer.status_code, answer.json["file_name"]) == (201, shown)
    assert names(own_folder) == [answer.json["sha256"]]


# Bytes and rows


def test_a_file_that_is_uploaded_while_it_is_deleted_keeps_its_bytes(app: Flask, farm: Farm, own_folder: Path) -> None:
    """The moment between the end of a delete's row and that of its bytes."""
    content = make_sliced_file(None, [Plate(minutes=15)])
    first = farm.add_file(content)
    with farm.database() as session:
        session.execute(sa.delete(PrintFile).where(PrintFile.id == first["id"]))
        session.commit()
    again = farm.add_file(content)
    with app.app_context():
        drop_bytes(own_folder / first["sha256"], farm.user["id"])
    assert farm.get(f"{PATH}/{again['id']}").status_code == 200
    assert (own_folder / again["sha256"]).read_bytes() == content
    with farm.database() as session:
        session.execute(sa.delete(PrintFile).where(PrintFile.id == again["id"]))
        session.commit()
        drop_bytes(own_folder / first["sha256"], farm.user["id"])
    assert names(own_folder) == []


def test_bytes_get_their_name_only_while_nobody_takes_bytes_away(app: Flask, farm: Farm, own_folder: Path) -> None:
    content, answers = make_sliced_file(None, [Plate(minutes=16)]), []
    thread = threading.Thread(target=lambda: answers.append(farm.upload(content)))
    with app.app_context():
        lock_files(farm.user["id"])
        thread.start()
        thread.join(1.5)
        while_locked = names(own_folder)
        db.session.rollback()
    thread.join(30)
    assert [name for name in while_locked if not name.startswith(".upload-")] == []
    assert len(while_locked) == 1
    assert (answers[0].status_code, names(own_folder)) == (201, [answers[0].json["sha256"]])


# What is refused


DAMAGED = make_sliced_file(None, [Plate()])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not a 3MF"),
        (b"G28\nG1 X10\n", "not a 3MF"),
        (DAMAGED[: len(DAMAGED) // 2], "not a 3MF"),
        (b"PK\x05\x06" + b"\0" * 18, "no sliced plate"),
        (zipped(("readme.txt", b"x")), "no sliced plate"),
        (zipped(("Metadata/plate_1.gcode", b"")), "no sliced plate"),
        (zipped(("Metadata/plate_0.gcode", b"x")), "no sliced plate"),
        (zipped(("Metadata/plate_٣.gcode", b"x")), "no sliced plate"),
        (zipped(("metadata/plate_1.gcode.md5", b"x")), "no sliced plate"),
        (make_unsliced_project(None, [Plate()]), "never sliced"),
        (zipped(("Metadata/plate_1.gcode", b"x"), ("../evil", b"x")), "lead out of it"),
        (zipped(("Metadata/plate_1.gcode", b"x"), ("/etc/evil", b"x")), "lead out of it"),
        (zipped(("Metadata/plate_1.gcode", b"x"), ("a\\..\\..\\evil", b"x")), "lead out of it"),
    ],
)
def test_what_is_no_sliced_file_is_refused_in_words_and_leaves_nothing(
    farm: Farm, own_folder: Path, content: bytes, sentence: str
) -> None:
    answer = farm.upload(content)
    assert (answer.status_code, answer.json["code"], list(answer.json["fields"])) == (422, "not_printable", ["file"])
    assert sentence in answer.json["error"]
    assert (farm.get(PATH).json["total"], names(own_folder)) == (0, [])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_part_that_stands_twice_in_a_file_is_refused(farm: Farm, own_folder: Path) -> None:
    answer = farm.upload(zipped(("Metadata/plate_1.gcode", b"x"), ("Metadata/plate_1.gcode", b"y")))
    assert (answer.status_code, names(own_folder)) == (422, [])


def padded(size: int) -> bytes:
    """A sliced file of exactly that size: a zip may carry a comment."""
    content = zipped(("Metadata/plate_1.gcode", b"x" * (size // 2)))
    missing = size - len(content)
    return content[:-2] + missing.to_bytes(2, "little") + b" " * missing


@pytest.mark.parametrize(("size", "status"), [(CAP, 201), (CAP + 1, 413), (CAP + 10_000, 413), (CAP + 60_000, 413)])
def test_a_file_above_the_cap_is_413_and_leaves_nothing(small_farm: Farm, size: int, status: int) -> None:
    answer = small_farm.upload(padded(size))
    assert answer.status_code == status, answer.text
    assert small_farm.get(PATH).json["total"] == (1 if status == 201 else 0)
    assert len(names(folder(small_farm.app, small_farm))) == (1 if status == 201 else 0)
    if status == 413:
        assert answer.json["code"] == "too_large"


def test_only_uploads_may_be_large(small_farm: Farm) -> None:
    body = {"name": "x" * 2_000_000}
    assert small_farm.post("/api/printers", body).status_code == 413


@pytest.mark.parametrize(
    "request_",
    [
        {"data": {}},
        {"data": {"file": "text"}},
        {"data": {"other": (io.BytesIO(b"x"), "x.3mf")}},
        {"json": {"file": "x"}},
    ],
)
def test_a_call_without_a_file_is_refused(farm: Farm, request_: dict[str, Any]) -> None:
    answer = farm.call("POST", PATH, **request_)
    assert answer.status_code in (415, 422), answer.text


# Lists, other users, the end


def test_files_are_listed_by_id_with_their_total(farm: Farm) -> None:
    ids = [farm.add_file(make_sliced_file(None, [Plate(minutes=minutes)]))["id"] for minutes in (5, 6, 7)]
    answer = farm.get(f"{PATH}?limit=2&offset=1").json
    assert ([each["id"] for each in answer["print_files"]], answer["total"]) == (ids[1:], 3)


def test_another_users_file_answers_like_a_missing_one(farm: Farm, stranger: Farm) -> None:
    theirs = stranger.add_file()["id"]
    for method in ("GET", "DELETE"):
        answers = [farm.call(method, f"{PATH}/{each}") for each in (theirs, MISSING_ID)]
        assert (answers[0].status_code, answers[0].data) == (404, answers[1].data)


def test_a_deleted_file_is_gone_from_list_and_disk(farm: Farm, own_folder: Path) -> None:
    file = farm.add_file()
    answer = farm.delete(f"{PATH}/{file['id']}")
    assert (answer.status_code, answer.json) == (200, {"message": "File deleted", "id": file["id"]})
    assert (farm.get(PATH).json["total"], names(own_folder)) == (0, [])
    assert farm.delete(f"{PATH}/{file['id']}").status_code == 404


def test_a_file_is_not_deleted_while_an_unfinished_print_or_a_profile_uses_it(farm: Farm, own_folder: Path) -> None:
    file, printer_id = farm.add_file(), farm.add_printer()["id"]
    profile = farm.add_profile(print_file_id=file["id"])
    made = farm.add_print(printer_id, print_file_id=file["id"])

    def refused(sentence: str) -> None:
        answer = farm.delete(f"{PATH}/{file['id']}")
        assert (answer.status_code, answer.json["code"]) == (409, "file_in_use")
        assert sentence in answer.json["error"]
        assert names(own_folder) == [file["sha256"]]

    refused("1 unfinished prints and 1 product profiles")
    farm.move(made["id"], "started", "failed")
    refused("0 unfinished prints and 1 product profiles")
    farm.move(made["id"], "queued")
    farm.delete(f"/api/product-profiles/{profile['id']}")
    for status in ("scheduled", "started"):
        refused("1 unfinished prints and 0 product profiles")
        farm.move(made["id"], status)
    refused("1 unfinished prints and 0 product profiles")
    add_intent(farm, made["id"], IntentState.confirmed)
    done = farm.move(made["id"], "completed")
    assert farm.delete(f"{PATH}/{file['id']}").status_code == 200
    assert farm.get_print(made["id"]) == done | {"print_file_id": None}
