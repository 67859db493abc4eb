"""Which spool feeds which filament of a plate: `farm.filament`."""

from __future__ import annotations

from decimal import Decimal
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.assignment import cheapest_columns
from farm.filament import COLOR_LIMIT, FilamentNeed, LoadedSpool, color_distance, match, needs_of
from farm.plate_facts import PlateFacts, PlateFilament

BLACK, WHITE, RED = "#000000", "#FFFFFF", "#FF0000"


def need(
    filament_id: int = 1, kind: str | None = "PLA", color: str | None = BLACK, grams: int | None = 40
) -> FilamentNeed:
    return FilamentNeed(filament_id, kind, color, None if grams is None else Decimal(grams))


def spool(
    slot: int, kind: str = "PLA", color: str | None = BLACK, grams: int | None = 500, *, ends: bool = False
) -> LoadedSpool:
    free = None if grams is None else Decimal(grams)
    return LoadedSpool(slot + 1, slot // 4, slot % 4, slot, kind, color, free, ends)


def slots(*args: object, **kwargs: object) -> dict[int, int]:
    found = match(*args, **kwargs)  # type: ignore[arg-type]
    assert found.reasons == ()
    return {filament_id: place[0] * 4 + place[1] for filament_id, place in found.places.items()}


def why(*args: object, **kwargs: object) -> tuple[str, ...]:
    found = match(*args, **kwargs)  # type: ignore[arg-type]
    assert found.reasons
    return found.reasons


def test_a_filament_is_fed_from_the_spool_of_its_type_and_colour() -> None:
    assert slots([need()], [spool(0, color=WHITE), spool(1, kind="PETG"), spool(2)]) == {1: 2}


@pytest.mark.parametrize("kind", ["PLA Silk", "PLA-CF", "PETG", "PLA Basic"])
def test_another_variant_is_another_type(kind: str) -> None:
    assert why([need()], [spool(0, kind=kind)]) == ("needs PLA black 40 g, no PLA is loaded",)


def test_the_case_of_a_type_does_not_matter() -> None:
    assert slots([need(kind="pla silk")], [spool(3, kind="PLA  Silk")]) == {1: 3}


def test_a_reason_says_what_is_needed_and_what_is_there() -> None:
    assert why([need(kind="PETG", grams=43)], [spool(2, kind="PETG", grams=12)]) == (
        "needs PETG black 43 g, slot 2 has 12 g",
    )
    assert why(
        [need(color="#FE0102")], [spool(0, color="#00FF00"), spool(1, color=None), spool(2, ends=True, color=RED)]
    ) == (
        "needs PLA #fe0102 40 g, slot 0 has lime, the colour of slot 1 is not known, "
        "slot 2 is nearly empty: replace the spool",
    )
    assert why([need()], []) == ("needs PLA black 40 g, no spool is known on this printer",)


def test_grams_that_almost_suffice_never_look_equal() -> None:
    almost = LoadedSpool(1, 0, 0, 0, "PLA", BLACK, Decimal("42.999"))
    assert why([FilamentNeed(1, "PLA", BLACK, Decimal("43.001"))], [almost]) == (
        "needs PLA black 43.1 g, slot 0 has 42.9 g",
    )


def test_grams_that_suffice_exactly_suffice() -> None:
    assert slots([need(grams=40)], [spool(0, grams=40)]) == {1: 0}


def test_grams_are_compared_where_both_are_known() -> None:
    assert slots([need(grams=None)], [spool(0, grams=1)]) == {1: 0}
    assert slots([need()], [spool(0, grams=None)]) == {1: 0}


def test_the_nearest_colour_is_taken_then_the_least_that_suffices() -> None:
    near, nearer = spool(0, color="#1A1A1A", grams=50), spool(1, color="#0A0A0A", grams=900)
    assert slots([need()], [near, nearer]) == {1: 1}
    assert slots([need()], [spool(0, grams=900), spool(1, grams=39), spool(2, grams=41), spool(3, grams=41)]) == {1: 2}


def test_the_limit_of_colour_distance() -> None:
    inside, outside = "#1B1B1B", "#303030"
    assert (color_distance(BLACK, inside) or 99) < COLOR_LIMIT < (color_distance(BLACK, outside) or 0)
    assert slots([need()], [spool(0, color=inside)]) == {1: 0}
    assert why([need()], [spool(0, color=outside)])
    assert slots([need()], [spool(0, color=outside)], any_color=True) == {1: 0}


def test_without_a_colour_the_only_one_of_the_type_is_taken_and_of_several_a_person_chooses() -> None:
    for unsaid in (None, "like the last one"):
        assert slots([need(color=unsaid)], [spool(0, color=WHITE), spool(1, kind="PETG")]) == {1: 0}
        assert slots([need(color=unsaid)], [spool(0, color=WHITE, grams=90), spool(1, color=WHITE, grams=80)]) == {1: 1}
        (reason,) = why([need(color=unsaid)], [spool(0, color=WHITE), spool(1)])
        assert reason.endswith("40 g, choose slot 0 (white) or slot 1 (black)")
        assert slots([need(color=unsaid)], [spool(0, color=WHITE), spool(1)], chosen={1: (0, 1)}) == {1: 1}


def test_words_that_stand_on_a_spool_are_a_colour() -> None:
    assert slots([need(color="Galaxy Black")], [spool(0, grams=41), spool(1, color="galaxy black")]) == {1: 1}


def test_a_chosen_place_wins_over_colour_but_not_over_type_grams_or_an_end_that_is_near() -> None:
    assert slots([need()], [spool(0), spool(1, color=WHITE)], chosen={1: (0, 1)}) == {1: 1}
    for other, fault in (
        (spool(1, kind="ABS"), "slot 1 has ABS"),
        (spool(1, grams=12), "slot 1 has 12 g"),
        (spool(1, ends=True), "slot 1 is nearly empty: replace the spool"),
    ):
        assert why([need()], [spool(0), other], chosen={1: (0, 1)}) == (f"needs PLA black 40 g, {fault}",)
    assert why([need()], [spool(0)], chosen={1: (3, 3)}) == (
        "needs PLA black 40 g, no spool is known in the place that was chosen",
    )


def test_alike_filaments_share_a_spool_and_their_grams_add_up() -> None:
    both = [need(1, grams=30), need(2, color="black", grams=30)]
    assert slots(both, [spool(0, grams=60)]) == {1: 0, 2: 0}
    assert why(both, [spool(0, grams=59)]) == ("needs PLA black 60 g, slot 0 has 59 g",)
    assert slots(both, [spool(0, grams=35), spool(1, grams=35)]) == {1: 0, 2: 1}


def test_filaments_that_differ_never_share_a_spool() -> None:
    grey = "#050505"
    assert slots([need(1), need(2, color=grey)], [spool(0), spool(1, color=grey)]) == {1: 0, 2: 1}
    assert why([need(1), need(2, color=grey)], [spool(0)]) == (
        "needs PLA #050505 40 g, the spool that fits feeds another filament of this plate",
    )
    assert why([need(1), need(2, color=WHITE)], [spool(0)], chosen={1: (0, 0), 2: (0, 0)}) == (
        "slot 0 was chosen for filaments that are not alike",
    )
    assert why([need(1), need(2, color=grey)], [spool(0)], chosen={1: (0, 0)})


def test_a_filament_gives_way_where_another_has_only_one_spool() -> None:
    wanted = [need(1, color="#0A0A0A"), need(2, color=BLACK)]
    assert slots(wanted, [spool(0, color="#050505"), spool(1, color="#1E1E1E")]) == {1: 1, 2: 0}


def test_a_filament_of_unknown_type_is_fed_only_from_a_chosen_place() -> None:
    assert "material filament 1" in why([need(kind=None)], [spool(0)])[0]
    assert slots([need(kind=None)], [spool(0)], chosen={1: (0, 0)}) == {1: 0}


def test_places_beyond_the_first_two_units_have_their_names() -> None:
    outside = LoadedSpool(1, 255, 0, None, "PLA", BLACK, Decimal(1))
    third = LoadedSpool(2, 128, 0, None, "PLA", BLACK, Decimal(1))
    assert why([need()], [outside, third]) == (
        "needs PLA black 40 g, AMS 128 tray 0 has 1 g, the external spool has 1 g",
    )


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        (BLACK, "black", 0.0),
        ("#112233FF", "#11223300", 0.0),
        ("#ABCDEF", "#abcdef", 0.0),
        ("Dark Blue", "#00008b", 0.0),
    ],
)
def test_colours_are_hex_or_names(a: str, b: str, distance: float) -> None:
    assert color_distance(a, b) == distance


@pytest.mark.parametrize(
    "text", ["", "#12345", "transparent", "rgb(1 2 3)", "color(srgb 1 0 0)", "Jade", "#" * 255, "\x00red", "a" * 255]
)
def test_what_is_no_colour_has_no_distance(text: str) -> None:
    assert color_distance(text, BLACK) is None
    assert color_distance(BLACK, text) is None


def test_the_distance_is_ciede2000() -> None:
    # Sharma, Wu, Dalal 2005 give the formula's test pairs in Lab; these are sRGB, reckoned by another implementation.
    assert color_distance("#000000", "#FFFFFF") == pytest.approx(100, abs=0.01)
    assert color_distance("#FF0000", "#00FF00") == pytest.approx(86.6, abs=0.1)


def test_a_print_of_one_filament_says_its_own_colour_and_grams() -> None:
    one = PlateFacts(1, (PlateFilament(3, "PETG", RED, Decimal(10)),))
    (found,) = needs_of(one, material_type="PLA", material_color=BLACK, grams=Decimal(12))
    assert found == FilamentNeed(3, "PETG", BLACK, Decimal(12))
    assert needs_of(one, material_type=None, material_color=None, grams=None) == (
        FilamentNeed(3, "PETG", RED, Decimal(10)),
    )
    two = PlateFacts(1, (PlateFilament(1, "PLA", RED, Decimal(1)), PlateFilament(4, "PLA", WHITE, Decimal(2))))
    assert [each.color for each in needs_of(two, material_type="X", material_color="Y", grams=Decimal(3))] == [
        RED,
        WHITE,
    ]
    assert needs_of(None, material_type="PLA", material_color=None, grams=None) == (FilamentNeed(1, "PLA", None, None),)


KINDS, COLORS = st.sampled_from(["PLA", "PETG"]), st.sampled_from([BLACK, "#141414", WHITE, RED, None, "words"])
NEEDS = st.lists(st.tuples(KINDS, COLORS, st.integers(1, 60)), min_size=1, max_size=4)
SPOOLS = st.lists(st.tuples(KINDS, COLORS, st.integers(0, 120), st.booleans()), max_size=5)


@given(wanted=NEEDS, loaded=SPOOLS, turn=st.randoms(use_true_random=False))
def test_whatever_is_matched_fits_and_never_more_than_is_there(wanted: list, loaded: list, turn: object) -> None:  # type: ignore[type-arg]
    needs = [need(number, *each) for number, each in enumerate(wanted, 1)]
    spools = [spool(slot, *each[:3], ends=each[3]) for slot, each in enumerate(loaded)]
    found = match(needs, spools)
    shuffled = list(spools)
    turn.shuffle(shuffled)  # type: ignore[attr-defined]
    assert match(needs, shuffled) == found
    by_place = {each.place: each for each in spools}
    taken: dict[tuple[int, int], list[FilamentNeed]] = {}
    for each in needs:
        if each.filament_id in found.places:
            taken.setdefault(found.places[each.filament_id], []).append(each)
    assert (len(found.places) == len(needs)) == (not found.reasons)
    for place, users in taken.items():
        there = by_place[place]
        assert not there.is_replaceable_only
        assert sum(each.grams or 0 for each in users) <= (there.free_grams or 0)
        assert len({(each.material_type, each.color) for each in users}) == 1
        assert users[0].material_type == there.material_type
        if users[0].color not in (None, "words"):
            assert (color_distance(users[0].color or "", there.color or "") or 0) <= COLOR_LIMIT


@given(st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=1, max_size=4))
def test_the_assignment_is_the_cheapest_of_all(costs: list[list[int]]) -> None:
    found = cheapest_columns(costs)
    assert len(set(found)) == len(costs)
    best = min(
        sum(row[column] for row, column in zip(costs, columns, strict=True))
        for columns in permutations(range(4), len(costs))
    )
    assert sum(row[column] for row, column in zip(costs, found, strict=True)) == best
