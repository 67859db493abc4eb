"""From an order line to its plates: which mapping fits, what the buyer's options mean, and what is never guessed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import sqlalchemy as sa

from farm.line_plates import LinePlates, Mappings, Why
from models import OrderItem, PrintFile, ProductProfile, Shop
from simulator import Plate, make_sliced_file
from tests.conftest import BASE_TIME
from tests.farm_builder import Farm

PATH = "/api/product-profiles"
MISSING_ID = 2_000_000_000
NAVY = {"option": "Color", "value": "Navy", "material_type": "PLA", "color": "#1F3A93"}
RED = {"option": "Color", "value": "Red", "material_type": None, "color": "#FF0000"}
SILK = {"option": "Finish", "value": "Silk", "material_type": "PLA Silk", "color": None}


def sliced(file_id: int = 1, *filaments: tuple[str, str]) -> PrintFile:
    """A file with one plate of these filaments, (type, colour) each."""
    facts = {
        "plate": 1,
        "print_minutes": 40,
        "grams": 20,
        "filaments": [
            {"filament_id": number, "material_type": kind, "color": color, "grams": 20}
            | dict.fromkeys(("meters", "nozzle_temp", "vendor_profile"))
            for number, (kind, color) in enumerate(filaments, 1)
        ],
        "nozzle_diameters_mm": [],
        "has_thumbnail": False,
        **dict.fromkeys(("printer_model", "bed_type", "nozzle_temp", "bed_temp")),
    }
    return PrintFile(id=file_id, file_name=f"{file_id}.gcode.3mf", plates=[facts])


WHITE_FILE = sliced(1, ("PLA", "#FFFFFF"))


def profile(**fields: Any) -> ProductProfile:
    usual = {"id": 1, "product_name": "-", "options": {}, "sku": "V-1", "print_file": WHITE_FILE, "plate": 1}
    return ProductProfile(**usual | fields)


def line(**fields: Any) -> OrderItem:
    return OrderItem(**{"title": "Vase", "sku": "V-1", "quantity": 1, "options": {}, **fields})


def further(file_id: int, **fields: Any) -> dict[str, Any]:
    usual = {"print_file_id": file_id, "plate": 1, "units_per_plate": 1, "copies": 1}
    names = ("print_time_minutes", "filament_grams", "preferred_material", "preferred_color")
    return usual | dict.fromkeys(names) | fields


def plates_of(line: OrderItem, *profiles: ProductProfile, shop_id: int | None = None, files: Any = ()) -> LinePlates:
    return Mappings(profiles, {file.id: file for file in files}).plates_of(line, shop_id)


def colors(found: LinePlates) -> list[tuple[str | None, str | None]]:
    return [(plate.material_type, plate.color) for plate in found.plates]


# Which mapping


@pytest.mark.parametrize(
    ("line", "shop_id", "profiles", "wanted"),
    [
        # The shop's own mapping of a SKU goes before one of all shops, and another shop's is none.
        (line(), 5, [profile(id=1), profile(id=2, shop_id=5), profile(id=3, shop_id=6)], [2]),
        (line(), 7, [profile(id=1), profile(id=2, shop_id=5)], [1]),
        (line(), None, [profile(id=2, shop_id=5)], []),
        # One of all shops by SKU goes before the shop's own by listing.
        (line(etsy_listing_id="9"), 5, [profile(id=1), profile(id=2, sku=None, etsy_listing_id="9", shop_id=5)], [1]),
        # A SKU whose profile is for other options is not this product: the listing may say.
        (
            line(etsy_listing_id="9", options={"Size": "L"}),
            5,
            [profile(id=1, options={"Size": "S"}), profile(id=2, sku=None, etsy_listing_id="9")],
            [2],
        ),
        # Of a listing the most exact options; between equals the shop's own.
        (
            line(sku=None, etsy_listing_id="9", options={"Color": "Red", "Size": "L"}),
            5,
            [
                profile(id=1, sku=None, etsy_listing_id="9", shop_id=5),
                profile(id=2, sku=None, etsy_listing_id="9", options={"Size": "L"}),
                profile(id=3, sku=None, etsy_listing_id="9", options={"Size": "L", "Color": "Blue"}),
            ],
            [2],
        ),
        (
            line(sku=None, etsy_listing_id="9"),
            5,
            [profile(id=1, sku=None, etsy_listing_id="9"), profile(id=2, sku=None, etsy_listing_id="9", shop_id=5)],
            [2],
        ),
        # Another shop's is none by listing and by title, either.
        (line(sku=None, etsy_listing_id="9"), 5, [profile(id=1, sku=None, etsy_listing_id="9", shop_id=6)], []),
        (line(sku=None), 5, [profile(id=1, sku=None, product_name="Vase", shop_id=6)], []),
        # Case, white space and Etsy's entities make no difference.
        (
            line(sku=None, etsy_listing_id="9", options={"primary  COLOR": "black & white"}),
            None,
            [profile(id=1, sku=None, etsy_listing_id="9", options={"Primary color": "Black &amp; White"})],
            [1],
        ),
        # What fits alike is not chosen between.
        (line(), None, [profile(id=4), profile(id=9)], [4, 9]),
        (
            line(sku=None, etsy_listing_id="9", options={"Color": "Red", "Size": "L"}),
            None,
            [
                profile(id=1, sku=None, etsy_listing_id="9", options={"Color": "Red"}),
                profile(id=2, sku=None, etsy_listing_id="9", options={"Size": "L"}),
            ],
            [1, 2],
        ),
        (line(), None, [profile(id=4, options={"Color": "Red"}), profile(id=9, options={"Color": "Blue"})], [4, 9]),
        (line(sku=None), None, [profile(id=4, product_name="Vase"), profile(id=9, product_name="Vase")], [4, 9]),
    ],
)
def test_a_line_is_mapped_by_shop_and_sku_else_listing_and_options(
    line: OrderItem, shop_id: int | None, profiles: list[ProductProfile], wanted: list[int]
) -> None:
    for each in (profiles, profiles[::-1]):
        assert [found.id for found in Mappings(each, {}).fitting(line, shop_id)] == wanted


def test_two_that_fit_alike_are_named_and_neither_is_taken() -> None:
    found = plates_of(line(), profile(id=4), profile(id=9))
    assert (found.why, found.profile, found.plates, found.profile_ids) == (Why.ambiguous, None, (), (4, 9))
    assert found.sentence == "Product profiles 4, 9 fit it alike."


def test_without_a_mapping_or_a_file_it_says_so() -> None:
    assert plates_of(line()).why is Why.no_mapping
    assert plates_of(line(), profile(print_file=None)).why is Why.no_file
    assert plates_of(line(), profile(more_plates=[further(2)])).why is Why.no_file
    assert plates_of(line(), profile()).why is None


# What the options mean


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"Color": "Navy"}, ("PLA", "#1F3A93")),
        ({"color ": "NAVY"}, ("PLA", "#1F3A93")),
        ({"Color": "Red"}, ("PLA", "#FF0000")),
        # Nothing chosen: as the profile says.
        ({}, ("PLA", "#000000")),
        # An option that the profile knows, and no other.
        ({"Size": "L"}, ("PLA", "#000000")),
        ({"Size": "L", "Color": "Red"}, ("PLA", "#FF0000")),
        # One that nobody knows says nothing against the rule that holds.
        ({"Scent": "Rose", "Color": "Red"}, ("PLA", "#FF0000")),
    ],
)
def test_an_option_chooses_the_filament(options: dict[str, str], wanted: tuple[str, str]) -> None:
    mapped = profile(rules=[NAVY, RED], preferred_material="PLA", preferred_color="#000000", options={"Size": "L"})
    found = plates_of(line(options=options), mapped)
    assert (found.why, colors(found)) == (None, [wanted])


@pytest.mark.parametrize("options", [{"Colour": "Red"}, {"Size": "L", "Colour": "Red"}])
def test_an_option_that_was_renamed_at_etsy_is_not_printed_in_the_usual_colour(options: dict[str, str]) -> None:
    mapped = profile(rules=[NAVY, RED], preferred_color="#000000", options={"Size": "L"})
    found = plates_of(line(options=options), mapped)
    assert (found.why, found.plates, found.profile_ids) == (Why.no_rule, (), (1,))
    assert found.sentence == (
        "Its rules are for Color, which the line does not have, and nothing says what Colour = Red is."
    )
    # A profile without rules takes whatever comes: no option of it chooses anything.
    assert plates_of(line(options=options), profile(preferred_color="#000000")).why is None


def test_of_two_ruled_options_one_that_was_renamed_is_noticed() -> None:
    found = plates_of(line(options={"Finish": "Silk", "Colour": "Red"}), profile(rules=[SILK, RED]))
    assert (found.why, found.sentence.split(",")[0]) == (Why.no_rule, "Its rules are for Color")


def test_two_options_choose_together_and_of_two_words_the_first_counts() -> None:
    silk_file = sliced(1, ("PLA Silk", "#FFFFFF"))
    chosen = line(options={"Color": "Red", "Finish": "Silk"})
    assert colors(plates_of(chosen, profile(rules=[RED, SILK], print_file=silk_file))) == [("PLA Silk", "#FF0000")]
    other = {**SILK, "color": "#00FF00"}
    assert colors(plates_of(chosen, profile(rules=[other, RED], print_file=silk_file))) == [("PLA Silk", "#00FF00")]


def test_a_value_that_no_rule_names_is_not_guessed() -> None:
    found = plates_of(line(options={"Color": "Green"}), profile(rules=[NAVY, RED], preferred_color="#000000"))
    assert (found.why, found.plates) == (Why.no_rule, ())
    assert found.sentence == "No rule says what Color = Green is."


def test_a_rule_cannot_turn_a_file_into_another_material_or_colour_one_of_many() -> None:
    chosen = line(options={"Finish": "Silk"})
    found = plates_of(chosen, profile(rules=[SILK]))
    assert (found.why, found.plates) == (Why.rule_does_not_fit, ())
    two = sliced(1, ("PLA", "#FFFFFF"), ("PLA", "#000000"))
    assert plates_of(line(options={"Color": "Red"}), profile(rules=[RED], print_file=two)).why is Why.rule_does_not_fit
    assert plates_of(line(), profile(rules=[RED], print_file=two)).why is None


# Products of several plates


@pytest.mark.parametrize(
    ("quantity", "units_per_plate", "copies", "count"),
    [(1, 1, 1, 1), (5, 2, 1, 3), (3, 1, 4, 12), (3, 4, 2, 2), (1, 10, 3, 1)],
)
def test_each_plate_is_printed_as_often_as_the_quantity_takes(
    quantity: int, units_per_plate: int, copies: int, count: int
) -> None:
    lid = sliced(2, ("PETG", "#000000"))
    mapped = profile(units_per_plate=2, more_plates=[further(2, units_per_plate=units_per_plate, copies=copies)])
    found = plates_of(line(quantity=quantity), mapped, files=[lid])
    assert [(each.file.id if each.file else None, each.count) for each in found.plates] == [
        (1, -(-quantity // 2)),
        (2, count),
    ]


def test_the_buyers_colour_is_for_the_plates_that_fix_none_themselves() -> None:
    files = [sliced(2, ("PLA", "#FFFFFF")), sliced(3, ("PLA", "#FFFFFF"))]
    mapped = profile(rules=[RED], more_plates=[further(2, preferred_color="#000000"), further(3)])
    found = plates_of(line(options={"Color": "Red"}), mapped, files=files)
    assert [color for _, color in colors(found)] == ["#FF0000", "#000000", "#FF0000"]


def test_the_prints_of_a_product_of_several_plates(farm: Farm) -> None:
    printer_id = farm.add_printer()["id"]
    body = farm.add_file(make_sliced_file(None, [Plate(minutes=30)]))
    lid = farm.add_file(make_sliced_file(None, [Plate(minutes=10), Plate(index=2, minutes=20)]))
    farm.add_profile(
        "Box",
        print_file_id=body["id"],
        units_per_plate=2,
        more_plates=[{"print_file_id": lid["id"], "plate": 2, "units_per_plate": 4, "filament_grams": 3.5}],
    )
    order = farm.add_order({"title": "Box", "quantity": 5})
    prints = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": printer_id}).json["prints"]
    assert [(each["print_file_id"], each["plate"], each["estimated_duration_minutes"]) for each in prints] == [
        *[(body["id"], 1, 30)] * 3,
        *[(lid["id"], 2, 20)] * 2,
    ]
    assert [each["estimated_grams"] for each in prints] == [20, 20, 20, 3.5, 3.5]
    assert [each["notes"] for each in prints] == [
        "Quantity: 5 (part 1 of 2: plate 1 of 3, 2 on it)",
        "Quantity: 5 (part 1 of 2: plate 2 of 3, 2 on it)",
        "Quantity: 5 (part 1 of 2: plate 3 of 3, 2 on it, 1 to spare)",
        "Quantity: 5 (part 2 of 2: plate 1 of 2, 4 on it)",
        "Quantity: 5 (part 2 of 2: plate 2 of 2, 4 on it, 3 to spare)",
    ]
    assert [each["units"] for each in prints] == [2, 2, 2, 4, 4]
    assert [each["job_name"] for each in prints] == [f"Order #{order['id']} - Box"] * 5


def test_a_rule_finds_the_slot_with_the_nearest_colour(farm: Farm) -> None:
    printer_id = farm.add_printer(model="P1S", nozzle_diameter_mm=0.4)["id"]
    for slot, color in enumerate(("#FFFFFF", "#203A90", "#0000FF")):
        farm.add_material(printer_id, slot, color=color)
    farm.add_profile("Vase", print_file_id=farm.add_file()["id"], rules=[NAVY])
    order = farm.add_order({"title": "Vase", "quantity": 1, "options": {"Color": "Navy"}})
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", {"printer_id": "auto"}).json["prints"][0]
    assert (made["material_color"], made["material_slot"]) == ("#1F3A93", 1)


@pytest.mark.parametrize("act", ["plan", "schedule-prints"])
@pytest.mark.parametrize("printer", ["auto", "one"])
def test_what_could_only_be_guessed_is_refused_by_line(farm: Farm, act: str, printer: str) -> None:
    printer_id = farm.add_printer()["id"]
    farm.add_profile("Vase", print_file_id=farm.add_file()["id"], rules=[NAVY])
    order = farm.add_order({"title": "Vase", "quantity": 1, "options": {"Color": "Green"}})
    body = {"printer_id": printer_id if printer == "one" else "auto"}
    answer = farm.post(f"/api/orders/{order['id']}/{act}", body)
    assert (answer.status_code, answer.json["code"]) == (409, "mapping_unclear")
    said = f"Line {order['items'][0]['id']} (Vase): No rule says what Color = Green is"
    assert (answer.json["error"], answer.json["fields"]) == (f"{said}.", {"items": [said]})
    assert farm.get("/api/bambu/scheduled-prints").json == []


def test_a_mapping_that_fits_no_more_is_not_kept(farm: Farm) -> None:
    made = farm.add_profile("-", sku="V-1", print_time_minutes=30)
    order = farm.add_order({"title": "Vase", "sku": "V-1", "quantity": 1})
    assert order["items"][0]["profile_id"] == made["id"]
    farm.put(f"{PATH}/{made['id']}", {"sku": "V-2"})
    body = {"printer_id": farm.add_printer()["id"]}
    made = farm.post(f"/api/orders/{order['id']}/schedule-prints", body).json["prints"][0]
    assert made["estimated_duration_minutes"] == 120
    assert farm.get(f"/api/orders/{order['id']}").json["items"][0]["profile_id"] is None


# The profile through the API


def add_shop(farm: Farm, number: int = 1) -> int:
    with farm.database() as session:
        shop = Shop(
            user_id=farm.user["id"],
            etsy_shop_id=f"{farm.user['id']}{number}",
            etsy_user_id="1",
            name="Shop",
            currency="EUR",
            access_token_sealed="",
            refresh_token_sealed="",
            token_expires_at=BASE_TIME,
            created_at=BASE_TIME,
        )
        session.add(shop)
        session.commit()
        return shop.id


def test_a_mapping_keeps_its_shop_rules_and_plates(farm: Farm) -> None:
    file = farm.add_file()
    plate = {"print_file_id": file["id"], "filament_grams": 12.3456, "preferred_color": "black", "copies": 2}
    sent = {"shop_id": add_shop(farm), "rules": [NAVY, RED], "more_plates": [plate]}
    made = farm.add_profile("Box", **sent)
    assert (made["shop_id"], made["rules"]) == (sent["shop_id"], sent["rules"])
    assert made["more_plates"] == [
        {
            "print_file_id": file["id"],
            "plate": 1,
            "units_per_plate": 1,
            "copies": 2,
            "print_time_minutes": None,
            "filament_grams": 12.346,
            "preferred_material": None,
            "preferred_color": "black",
        }
    ]
    assert farm.get(f"{PATH}/{made['id']}").json == made
    emptied = farm.put(f"{PATH}/{made['id']}", {"shop_id": None, "rules": [], "more_plates": []}).json
    assert emptied == made | {"shop_id": None, "rules": [], "more_plates": []}


@pytest.mark.parametrize(
    ("field", "bad", "fault"),
    [
        ("rules", [NAVY, {**NAVY, "value": " navy "}], "rules"),
        ("rules", [{"option": "Color", "value": "Navy"}], "rules.0.color"),
        ("rules", [{**NAVY, "color": "#12"}], "rules.0.color"),
        ("rules", [{**NAVY, "option": ""}], "rules.0.option"),
        ("rules", [{**NAVY, "value": "x" * 256}], "rules.0.value"),
        ("rules", [{**NAVY, "slot": 1}], "rules.0.slot"),
        ("rules", [{**NAVY, "value": str(number)} for number in range(201)], "rules"),
        ("rules", None, "rules"),
        ("more_plates", [{}], "more_plates.0.print_file_id"),
        ("more_plates", [{"print_file_id": 1, "plate": 0}], "more_plates.0.plate"),
        ("more_plates", [{"print_file_id": 1, "units_per_plate": 0}], "more_plates.0.units_per_plate"),
        ("more_plates", [{"print_file_id": 1, "copies": 1001}], "more_plates.0.copies"),
        ("more_plates", [{"print_file_id": 1}] * 51, "more_plates"),
    ],
)
def test_rules_and_plates_are_checked_by_name(farm: Farm, field: str, bad: Any, fault: str) -> None:
    kept = farm.add_profile()
    for answer in (
        farm.post(PATH, {"product_name": "Vase", field: bad}),
        farm.put(f"{PATH}/{kept['id']}", {field: bad}),
    ):
        assert (answer.status_code, list(answer.json["fields"])) == (422, [fault])


def test_a_further_plate_must_be_in_its_file(farm: Farm) -> None:
    plates = [{"print_file_id": farm.add_file()["id"], "plate": 2}]
    answer = farm.post(PATH, {"product_name": "Vase", "more_plates": plates})
    assert answer.json["fields"] == {"more_plates.0.plate": ["The file has no such plate; it has 1."]}


def test_anothers_shop_or_file_answers_like_a_missing_one(farm: Farm, stranger: Farm) -> None:
    mine = farm.add_profile()["id"]
    bodies = [{"shop_id": each} for each in (add_shop(stranger), MISSING_ID)]
    bodies += [{"more_plates": [{"print_file_id": each}]} for each in (stranger.add_file()["id"], MISSING_ID)]
    answers = [farm.put(f"{PATH}/{mine}", body) for body in bodies]
    answers += [farm.post(PATH, {"product_name": "x", **body}) for body in bodies]
    assert {(answer.status_code, answer.data) for answer in answers} == {(404, answers[0].data)}


def test_a_file_that_a_further_plate_names_is_not_deleted(farm: Farm) -> None:
    file = farm.add_file()
    made = farm.add_profile("Box", more_plates=[{"print_file_id": file["id"]}])
    answer = farm.delete(f"/api/print-files/{file['id']}")
    assert (answer.status_code, answer.json["code"]) == (409, "file_in_use")
    farm.delete(f"{PATH}/{made['id']}")
    assert farm.delete(f"/api/print-files/{file['id']}").status_code == 200


def test_a_file_that_is_deleted_while_a_mapping_is_made_is_in_none(farm: Farm) -> None:
    for number in range(8):
        file_id = farm.add_file(make_sliced_file(None, [Plate(minutes=30 + number)]))["id"]
        gate = threading.Barrier(2)

        def run(call: Any, *args: Any, gate: threading.Barrier = gate) -> None:
            gate.wait()
            call(*args)

        body = {"product_name": "Box", "more_plates": [{"print_file_id": file_id}]}
        threads = [
            threading.Thread(target=run, args=(farm.post, PATH, body)),
            threading.Thread(target=run, args=(farm.delete, f"/api/print-files/{file_id}")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        is_gone = farm.get(f"/api/print-files/{file_id}").status_code == 404
        with farm.database() as session:
            named = [
                each["print_file_id"]
                for plates in session.scalars(sa.select(ProductProfile.more_plates))
                for each in plates
            ]
        assert is_gone is (file_id not in named)
