"""A hostile 3MF is contained: refused or cleaned, nothing written, little memory, little time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from farm.print_files import READER, NotPrintable, folder_of, read_plates, run_bounded
from simulator import make_sliced_file
from tests.farm_builder import Farm
from tests.hostile_files import BEYOND, CASES, ESCAPED, SCRIPT, with_parts

PATH = "/api/print-files"
ROOT = Path(__file__).parent.parent
MAX_SECONDS = 30
MAX_BYTES = 300_000_000

# Reads each file as the farm does, from a small process: a big one would count as the reader's own memory.
MEASURE = """
import json, os, subprocess, sys, time
for path in sys.argv[2:]:
    began = time.monotonic()
    with open(path, "rb") as file:
        reader = subprocess.Popen(json.loads(sys.argv[1]), stdin=file, stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, env={}, cwd="/")
        answer = reader.stdout.read()
        _, status, used = os.wait4(reader.pid, 0)
    print(json.dumps([time.monotonic() - began, used.ru_maxrss * 1024, len(answer), status]), flush=True)
"""


@cache
def content(name: str) -> bytes:
    return CASES[name][0]()


def tree(*folders: Path) -> dict[str, float]:
    """Every file below these folders and when it was written; not what Python and its tools keep for themselves."""
    return {
        str(path): path.stat().st_mtime
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not any(each.startswith((".", "__pycache__")) for each in path.relative_to(folder).parts)
    }


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40


@pytest.fixture
def places(app: Flask) -> list[Path]:
    return [
        app.extensions["parts"].settings.files_dir,
        *(ROOT / each for each in ("api", "farm", "bambu", "simulator")),
    ]


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_file_is_refused_or_cleaned_and_writes_nothing(farm: Farm, places: list[Path], name: str) -> None:
    _, sentence, expected = CASES[name]
    before = tree(*places)
    answer = farm.upload(content(name), f"{ESCAPED}.gcode.3mf")
    after = tree(*places)
    assert not [path for folder in (Path("/"), Path("/tmp"), Path.cwd(), ROOT, ROOT.parent, Path(tempfile.gettempdir()))
                if (path := folder / ESCAPED).exists()]  # fmt: skip
    if sentence is not None:
        assert (answer.status_code, answer.json["code"]) == (422, "not_printable"), answer.text[:2000]
        assert sentence in answer.json["error"]
        assert ESCAPED not in answer.text
        assert after == before
        assert farm.get(PATH).json["total"] == 0
        return
    assert answer.status_code == 201, answer.text[:2000]
    kept = str(folder_of(places[0], farm.user["id"]) / answer.json["sha256"])
    assert set(after) - set(before) <= {kept}
    assert {path: at for path, at in after.items() if path != kept} == {
        path: at for path, at in before.items() if path != kept
    }
    plate = answer.json["plates"][0]
    for fact, value in expected.items():
        assert seen(plate, fact, answer.text) == value, (fact, plate)


def seen(plate: dict[str, Any], fact: str, text: str) -> Any:
    if fact == "filament_ids":
        return [each["filament_id"] for each in plate["filaments"]]
    if fact == "filament_grams":
        return [each["grams"] for each in plate["filaments"]]
    if fact == "is_clean":
        said = [plate["printer_model"], *(each["material_type"] for each in plate["filaments"])]
        letters = "".join(each for each in said if each)
        harmful = {each for each in letters if unicodedata.category(each)[0] in "CZ" and each != " "}
        assert [each["color"] for each in plate["filaments"]] == [None]
        return not harmful and not set(letters) & set('<>{}$|=;"`\\*:@')
    return plate[fact]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """By name: seconds, most memory in bytes, length of the answer, exit status of the reader."""
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(CASES):
        (folder / f"{number}").write_bytes(content(name))
    command = [sys.executable, "-I", "-S", "-c", MEASURE, json.dumps([*READER, "plates"])]
    paths = [str(folder / f"{number}") for number in range(len(CASES))]
    lines = subprocess.run([*command, *paths], capture_output=True, check=True, text=True, timeout=300).stdout
    return dict(zip(CASES, map(json.loads, lines.splitlines()), strict=True))


def test_reading_a_hostile_file_takes_little_time_and_memory(measured: dict[str, list[float]]) -> None:
    most = {name: round(size / 1e6) for name, (_, size, _, _) in measured.items()}
    longest = {name: round(seconds, 2) for name, (seconds, _, _, _) in measured.items()}
    print(f"{len(most)} files, at most {max(most.values())} MB and {max(longest.values())} s each")
    assert all(size < MAX_BYTES / 1e6 for size in most.values()), most
    assert all(seconds < MAX_SECONDS for seconds in longest.values()), longest
    assert all(answered < 20_000 for _, _, answered, _ in measured.values())


def test_no_hostile_file_ends_its_reader_without_an_answer(measured: dict[str, list[float]]) -> None:
    """The limits stand behind the checks: but for the one that is meant to, none gets as far as a limit."""
    ended = {name for name, (_, _, answered, status) in measured.items() if status or not answered}
    assert ended == {name for name, (_, sentence, _) in CASES.items() if sentence == BEYOND}


# What the reader's process may do at all


@pytest.fixture
def good_file(tmp_path: Path) -> Iterator[io.BufferedReader]:
    (tmp_path / "good").write_bytes(make_sliced_file())
    with open(tmp_path / "good", "rb") as file:
        yield file


def inside(code: str, file: io.BufferedReader, *, seconds: float = 20, max_bytes: int = 1000) -> tuple[bytes, int]:
    """Run some code as if a hostile file had taken over its reader."""
    taken_over = f"import sys; sys.path += sys.argv[1:3]; import farm.plate_reader as reader; reader.limit()\n{code}"
    before, after = READER.index("-c"), READER.index("-c") + 2
    command = (*READER[: before + 1], taken_over, *READER[after:])
    return run_bounded(command, file, max_bytes=max_bytes, seconds=seconds)


def test_the_reader_runs_at_all(good_file: io.BufferedReader) -> None:
    assert inside("print('here')", good_file) == (b"here\n", 0)


@pytest.mark.parametrize(
    "code",
    [
        "open('/etc/passwd')",
        "open(sys.argv[1] + '/taken', 'w')",
        "import os; os.open('/tmp', os.O_RDONLY)",
        "import os; os.listdir('/')",
        "import socket",
        "import _socket; _socket.socket()",
        "import os; os.pipe()",
        "x = bytes(400_000_000)",
        "x = [bytes(1_000_000) for _ in range(400)]",
    ],
)
def test_a_reader_that_was_taken_over_can_open_nothing_and_take_no_memory(
    good_file: io.BufferedReader, code: str
) -> None:
    answer, status = inside(f"{code}\nprint('done')", good_file)
    assert (answer, status) == (b"", 1)
    assert not (ROOT / "taken").exists()


def test_a_reader_is_limited_before_it_reads(good_file: io.BufferedReader) -> None:
    code = (
        "import sys; sys.path += sys.argv[1:3]; from farm.plate_reader import main; main(['plates']); open('/dev/null')"
    )
    place = READER.index("-c") + 1
    answer, status = run_bounded((*READER[:place], code, *READER[place + 1 :]), good_file, max_bytes=9999, seconds=20)
    assert answer.startswith(b'{"plates"') and status == 1


def test_a_reader_is_told_nothing_of_our_environment(
    good_file: io.BufferedReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JWT_SECRET_KEY", "canary")
    answer, status = inside("import os; print(sorted(os.environ), os.getcwd())", good_file)
    assert status == 0 and b"SECRET" not in answer and b"/\n" in answer


def test_a_reader_has_little_processor_time(good_file: io.BufferedReader) -> None:
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_CPU), resource.getrlimit(resource.RLIMIT_FSIZE))"
    # A library cannot be loaded any more once nothing can be opened: the module is there since `limit`.
    assert inside(code, good_file) == (b"(25, 25) (0, 0)\n", 0)


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(60)"])
def test_a_reader_that_does_not_end_is_ended(good_file: io.BufferedReader, code: str) -> None:
    assert inside(code, good_file, seconds=0.7) == (b"", -9)


def test_a_reader_that_does_not_stop_talking_is_ended_at_once(good_file: io.BufferedReader) -> None:
    began = time.monotonic()
    answer, status = inside("while True: print('x' * 1000)", good_file, max_bytes=5000, seconds=20)
    assert (len(answer), status) == (5001, -9)
    assert time.monotonic() - began < 15


def test_a_reader_that_dies_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(NotPrintable, match="gone from our storage"):
        read_plates(tmp_path / "none")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotPrintable, match="gone from our storage"):
        read_plates(tmp_path / "folder")


# The picture, as a browser gets it


def thumbnail(farm: Farm, file: dict[str, Any], plate: int = 1) -> Any:
    return farm.get(f"{PATH}/{file['id']}/plates/{plate}/thumbnail")


def test_a_picture_is_nothing_but_a_picture(farm: Farm) -> None:
    file = farm.add_file(content("a picture with more behind it"))
    answer = thumbnail(farm, file)
    assert answer.status_code == 200 and answer.data.startswith(b"\x89PNG") and answer.data.endswith(b"IEND\xaeB`\x82")
    assert SCRIPT not in answer.data and b"tEXt" not in answer.data and b"PK\3\4" not in answer.data
    assert answer.content_type == "image/png"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"] == 'inline; filename="plate-1.png"'
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "sandbox" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize("name", ["a page in place of a picture", "a picture that swells", "half a picture"])
def test_what_is_no_sound_picture_is_none(farm: Farm, name: str) -> None:
    assert thumbnail(farm, farm.add_file(content(name))).status_code == 404


def test_a_file_without_a_picture_has_none(farm: Farm) -> None:
    file = farm.add_file(with_parts(picture=None))
    assert file["plates"][0]["has_thumbnail"] is False
    assert thumbnail(farm, file).status_code == 404
