"""What is read of a sliced file's plates, and what a print made from one takes from it."""

from __future__ import annotations

import json
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from farm.plate_facts import PlateFacts, PlateFilament, known_plate
from farm.print_files import NotPrintable, folder_of, plate_of, read_plates
from models import PrintFile
from simulator import Plate, make_sliced_file
from tests.farm_builder import Farm
from tests.hostile_files import good_parts, slice_info, with_parts

CAPTURE = Path(__file__).parent.parent.parent / "shared" / "captures" / "bambu" / "threemf"
PETG, WHITE = ("PETG", "#FF8000", 12.5, 4.1), ("PLA", "#FFFFFF", 30.25, 10.0)
FILES, PRINTS = "/api/print-files", "/api/bambu/scheduled-prints"
FILLED = ("estimated_duration_minutes", "estimated_grams", "material_type", "material_color", "nozzle_temp", "bed_temp")


def read(tmp_path: Path, content: bytes, plate: int = 1) -> PlateFacts:
    path = tmp_path / "file"
    path.write_bytes(content)
    return next(facts for facts in read_plates(path) if facts.plate == plate)


def written(parts: dict[str, bytes], path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path.read_bytes()


def test_everything_that_a_slicer_says_of_a_plate_is_read(tmp_path: Path) -> None:
    content = make_sliced_file(None, [Plate(2, 91.5, (None, PETG, None, WHITE))], "O1D", "0.4,0.6", "hot_plate")
    assert read(tmp_path, content, 2) == PlateFacts(
        plate=2,
        filaments=(
            PlateFilament(2, "PETG", "#FF8000", Decimal("12.5"), Decimal("4.1"), 255, "GFG00"),
            PlateFilament(4, "PLA", "#FFFFFF", Decimal("30.25"), Decimal(10), 220, "GFA00"),
        ),
        print_minutes=92,
        grams=Decimal("42.75"),
        printer_model="H2D",
        nozzle_diameters_mm=(Decimal("0.4"), Decimal("0.6")),
        bed_type="hot_plate",
        nozzle_temp=220,
        bed_temp=70,
        has_thumbnail=True,
    )


def test_facts_survive_being_kept() -> None:
    facts = PlateFacts(
        3,
        (PlateFilament(7, "PA-CF", "#001122", Decimal("0.125"), None, 290, None),),
        *(61, Decimal("0.125"), "X9", (Decimal("0.4"),), "eng_plate", 290, 100, False),
    )
    kept = json.loads(json.dumps(facts.to_json()))
    assert PlateFacts.from_json(kept) == facts == PlateFacts.from_stranger(kept)
    assert known_plate([{"plate": 1}, kept], 3) == facts
    assert (known_plate([{"plate": 1}, kept], 1), known_plate([kept], 2)) == (None, None)


@pytest.mark.skipif(not CAPTURE.exists(), reason="the captures are not here")
def test_a_real_description_is_read(tmp_path: Path) -> None:
    stated = (CAPTURE / "slice_info_a1_multicolor.config").read_bytes()
    facts = read(tmp_path, with_parts(slice_info=stated))
    assert (facts.printer_model, facts.print_minutes, facts.grams) == ("A1", 91, Decimal("26.91"))
    assert [(each.filament_id, each.color, each.grams) for each in facts.filaments] == [
        (1, "#0DFF00", Decimal("20.26")),
        (2, "#000000", Decimal("2.15")),
        (6, "#0DFF00", Decimal("3.58")),
        (7, "#000000", Decimal("0.92")),
    ]


def test_a_file_that_says_it_in_its_gcode_only_is_read_from_there(tmp_path: Path) -> None:
    content = make_sliced_file(None, [Plate(1, 164.75, (None, PETG, WHITE))])
    (tmp_path / "whole").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "whole") as archive:
        gcode = archive.read("Metadata/plate_1.gcode")
    facts = read(tmp_path, written({"Metadata/plate_1.gcode": gcode}, tmp_path / "bare"))
    assert facts == PlateFacts(
        plate=1,
        filaments=(
            PlateFilament(2, "PETG", "#FF8000", Decimal("12.5"), Decimal("4.1"), 255, "GFG00"),
            PlateFilament(3, "PLA", "#FFFFFF", Decimal("30.25"), Decimal(10), 220, "GFA00"),
        ),
        print_minutes=165,
        grams=Decimal("42.75"),
        printer_model="P1S",
        nozzle_diameters_mm=(Decimal("0.4"),),
        bed_type="textured_plate",
        nozzle_temp=220,
        bed_temp=70,
    )


def test_a_gcode_that_says_it_at_its_end_is_read_from_there(tmp_path: Path) -> None:
    end = (
        b"; filament used [mm] = 4000.12, 0.00\n; filament used [g] = 12.34, 0.00\n"
        b"; estimated printing time (normal mode) = 1d 1h 33m 15s\n; filament_type = PETG;PLA\n"
        b"; filament_colour = #FF800080;#000000\n; nozzle_temperature = 250,220\n; hot_plate_temp = 80,60\n"
        b"; curr_bed_type = High Temp Plate\n; printer_model = Bambu Lab X1 Carbon\n"
    )
    gcode = b"; HEADER_BLOCK_START\n" + b"G1 X1.25 Y2\n" * 50_000 + end
    facts = read(tmp_path, written({"Metadata/plate_1.gcode": gcode}, tmp_path / "bare"))
    assert facts.filaments == (PlateFilament(1, "PETG", "#FF8000", Decimal("12.34"), Decimal(4), 250),)
    assert (facts.print_minutes, facts.bed_type, facts.bed_temp) == (1534, "hot_plate", 80)
    assert (facts.printer_model, facts.grams) == ("X1 Carbon", Decimal("12.34"))


def test_a_gcode_that_says_nothing_is_a_plate_of_which_nothing_is_known(tmp_path: Path) -> None:
    content = written({"Metadata/plate_4.gcode": b"G28\n"}, tmp_path / "bare")
    assert read(tmp_path, content, 4) == PlateFacts(4)


def test_a_printer_with_several_nozzles_has_several_temperatures_per_filament(tmp_path: Path) -> None:
    settings = json.loads(good_parts()["Metadata/project_settings.config"])
    settings |= {"nozzle_temperature": ["211", "212", "251", "252"], "filament_self_index": ["1", "1", "2", "2"]}
    stated = slice_info('<filament id="2" type="PETG" used_g="5"/>')
    facts = read(tmp_path, with_parts(settings=json.dumps(settings).encode(), slice_info=stated))
    assert facts.filaments[0].nozzle_temp == 251


@pytest.mark.parametrize(
    ("formula", "first_extruder", "expected"),
    [("by_first_filament", 0, 55), ("by_first_filament", 1, 80), ("by_highest_temp", 0, 80)],
)
def test_the_beds_temperature_follows_the_slicers_own_rule(
    tmp_path: Path, formula: str, first_extruder: int, expected: int
) -> None:
    settings = {"textured_plate_temp": ["55", "80"], "bed_temperature_formula": formula}
    content = with_parts(
        settings=json.dumps(settings).encode(),
        layout=json.dumps({"bed_type": "textured_plate", "first_extruder": first_extruder}).encode(),
        slice_info=slice_info('<filament id="1" used_g="9"/><filament id="2" used_g="1"/>'),
    )
    assert read(tmp_path, content).bed_temp == expected


# A print takes it over


def taken(of_print: dict[str, Any]) -> list[Any]:
    return [of_print[name] for name in FILLED]


@pytest.fixture
def file(farm: Farm) -> dict[str, Any]:
    return farm.add_file(make_sliced_file(None, [Plate(1, 45, (WHITE,)), Plate(2, 20, (None, PETG))]))


def test_a_print_of_a_plate_knows_what_the_slicer_said(farm: Farm, file: dict[str, Any]) -> None:
    printer_id = farm.add_printer()["id"]
    first = farm.add_print(printer_id, print_file_id=file["id"])
    second = farm.add_print(printer_id, print_file_id=file["id"], plate=2)
    assert taken(first) == [45, 30.25, "PLA", "#FFFFFF", 220, 65]
    assert taken(second) == [20, 12.5, "PETG", "#FF8000", 255, 70]


def test_what_a_person_says_of_a_print_wins_over_the_file(farm: Farm, file: dict[str, Any]) -> None:
    said = {"estimated_duration_minutes": 7, "material_color": "white", "nozzle_temp": None, "bed_temp": 50}
    made = farm.add_print(farm.add_printer()["id"], print_file_id=file["id"], **said)
    assert taken(made) == [7, 30.25, "PLA", "white", None, 50]


def test_a_print_that_gets_another_file_or_plate_learns_what_is_said_there(farm: Farm, file: dict[str, Any]) -> None:
    made = farm.add_print(farm.add_printer()["id"], estimated_grams=1)
    assert taken(made) == [None, 1, None, None, None, None]
    path = f"{PRINTS}/{made['id']}"
    changed = farm.put(path, {"print_file_id": file["id"], "bed_temp": 60}).json
    assert taken(changed) == [45, 30.25, "PLA", "#FFFFFF", 220, 60]
    changed = farm.put(path, {"plate": 2, "material_color": "red"}).json
    assert taken(changed) == [20, 12.5, "PETG", "red", 255, 70]
    edited = farm.put(path, {"estimated_grams": 99}).json
    same = farm.put(path, {"print_file_id": file["id"], "plate": 2}).json
    assert taken(same) == taken(edited) == [20, 99, "PETG", "red", 255, 70]
    gone = farm.put(path, {"print_file_id": None}).json
    assert taken(gone) == taken(edited)


def scheduled(farm: Farm, **profile: Any) -> dict[str, Any]:
    farm.add_profile("Vase", **profile)
    order = farm.add_order({"title": "Vase", "quantity": 1})
    answer = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": farm.add_printer()["id"]})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json["prints"][0]
    return made


def test_an_orders_print_takes_from_the_file_what_its_profile_leaves_open(farm: Farm, file: dict[str, Any]) -> None:
    made = scheduled(farm, print_file_id=file["id"], plate=2, nozzle_temp_c=250, preferred_color="amber")
    assert taken(made) == [20, 12.5, "PETG", "amber", 250, 70]


def test_an_orders_print_without_a_file_has_what_it_always_had(farm: Farm) -> None:
    assert taken(scheduled(farm)) == [120, None, "PLA", None, 200, 60]


def test_a_plate_of_which_little_is_known_leaves_the_usual(farm: Farm, tmp_path: Path) -> None:
    bare = farm.add_file(written({"Metadata/plate_1.gcode": b"G28\n"}, tmp_path / "bare"))
    assert taken(scheduled(farm, print_file_id=bare["id"])) == [120, None, "PLA", None, 200, 60]
    assert taken(farm.add_print(farm.add_printer()["id"], print_file_id=bare["id"])) == [None] * 6


# Files that were uploaded before plates were read


def forget(farm: Farm, file: dict[str, Any]) -> None:
    with farm.database() as session:
        plates = [{"plate": each["plate"]} for each in file["plates"]]
        session.execute(sa.update(PrintFile).where(PrintFile.id == file["id"]).values(plates=plates))
        session.commit()


def test_a_file_of_before_is_read_when_it_is_looked_at(farm: Farm, file: dict[str, Any]) -> None:
    forget(farm, file)
    (listed,) = farm.get(FILES).json["print_files"]
    assert [(each["plate"], each["print_minutes"], each["filaments"]) for each in listed["plates"]] == [
        (1, None, []),
        (2, None, []),
    ]
    assert farm.get(f"{FILES}/{file['id']}").json == file
    assert farm.get(FILES).json["print_files"] == [file]


@pytest.mark.parametrize("use", ["print", "profile", "upload"])
def test_a_file_of_before_is_read_when_it_is_used(farm: Farm, file: dict[str, Any], use: str) -> None:
    forget(farm, file)
    if use == "print":
        made = farm.add_print(farm.add_printer()["id"], print_file_id=file["id"])
        assert taken(made) == [45, 30.25, "PLA", "#FFFFFF", 220, 65]
    elif use == "profile":
        farm.add_profile("Vase", print_file_id=file["id"])
    else:
        farm.add_file(make_sliced_file(None, [Plate(1, 45, (WHITE,)), Plate(2, 20, (None, PETG))]))
    assert farm.get(FILES).json["print_files"] == [file]


def test_a_file_of_before_that_is_gone_or_refused_today_stays_usable(
    app: Flask, farm: Farm, file: dict[str, Any]
) -> None:
    forget(farm, file)
    files_dir = app.extensions["parts"].settings.files_dir
    (folder_of(files_dir, farm.user["id"]) / file["sha256"]).write_bytes(b"no zip any more")
    assert farm.get(f"{FILES}/{file['id']}").json["plates"][0]["print_minutes"] is None
    assert taken(farm.add_print(farm.add_printer()["id"], print_file_id=file["id"])) == [None] * 6
    farm.add_profile("Vase", print_file_id=file["id"])
    with farm.database() as session, pytest.raises(NotPrintable, match="not a 3MF"):
        plate_of(session.get_one(PrintFile, file["id"]), 1, files_dir)


def test_what_a_row_knows_needs_no_file(app: Flask, farm: Farm, file: dict[str, Any], tmp_path: Path) -> None:
    with farm.database() as session:
        row = session.get_one(PrintFile, file["id"])
        facts = plate_of(row, 2, tmp_path / "nowhere")
        assert facts.filament_ids == (2,)
        assert facts == read_plates(folder_of(app.extensions["parts"].settings.files_dir, row.user_id) / row.sha256)[1]
        with pytest.raises(NotPrintable, match="has no plate 3"):
            plate_of(row, 3, tmp_path / "nowhere")


# The picture


def test_a_plates_picture_is_answered_to_its_owner_alone(farm: Farm, stranger: Farm, file: dict[str, Any]) -> None:
    answer = farm.get(f"{FILES}/{file['id']}/plates/2/thumbnail")
    assert (answer.status_code, answer.content_type) == (200, "image/png")
    assert answer.headers["Cache-Control"] == "no-store"
    never = farm.get(f"{FILES}/2000000000/plates/1/thumbnail")
    assert stranger.get(f"{FILES}/{file['id']}/plates/2/thumbnail").data == never.data
    assert farm.get(f"{FILES}/{file['id']}/plates/3/thumbnail").status_code == 404
    assert farm.client.get(f"{FILES}/{file['id']}/plates/2/thumbnail").status_code == 401
