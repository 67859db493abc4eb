"""What the demo's shop sells, where it is, who buys there, and how the parcel goes."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from simulator.etsy_receipts import ReceiptLine
from simulator.sliced_file import Plate, make_sliced_file
from simulator.spools import Spool
from simulator.weather import BERLIN

RECEIPT_ID, NEXT_RECEIPT_ID = 3_100_000_007, 3_100_000_008
BUYER, NEXT_BUYER = "Robin Example", "Kim Example"
SPOOL_GRAMS = 1000.0
COST_PER_KG = 24.99
# By slot, on both printers: (type, colour).
FILAMENTS = (("PLA", "#FFFFFF"), ("PETG", "#161616"))
# On the holder outside of the AMS of the first one, where nothing measures the air.
OUTSIDE = ("PA", "#3A3A3A")
PLACE, ROOM_C = f"{BERLIN.name}, {BERLIN.country}", 17.0
TRACKING, CARRIER = "JJD00123456789", "dhl"


@dataclass(frozen=True, slots=True)
class Product:
    """Something printed: the order line that asks for it, and the plate it comes from. Sliced for `model_id`."""

    line: ReceiptLine
    plate: Plate
    file_name: str
    model_id: str
    units_per_plate: int

    @property
    def title(self) -> str:
        return self.line.title

    @property
    def filament(self) -> tuple[str, str, float, float]:
        """(type, colour, grams, metres)."""
        return self.plate.used[0][1]

    def slice(self) -> bytes:
        return make_sliced_file(None, [self.plate], model_id=self.model_id)


VASE = Product(
    ReceiptLine("Spiral vase", "VASE-01", 2, Decimal("24.00"), {"Color": "White"}),
    Plate(minutes=24, layers=60, filaments=(("PLA", "#FFFFFF", 18.3, 6.1),), objects=("Spiral vase",)),
    "vase_p1s.gcode.3mf",
    model_id="C12",
    units_per_plate=1,
)
CLIPS = Product(
    ReceiptLine("Cable clips, set of 4", "CLIP-04", 4, Decimal("6.50")),
    Plate(minutes=21, layers=24, filaments=(("PETG", "#161616", 9.6, 3.2),), objects=("Clip",) * 8),
    "clips_x1c.gcode.3mf",
    model_id="BL-P001",
    units_per_plate=2,
)
PRODUCTS = (VASE, CLIPS)
PATTERN_LINE = ReceiptLine("Vase pattern (PDF)", "PDF-01", 1, Decimal("3.00"), is_digital=True)
LINES = (VASE.line, CLIPS.line, PATTERN_LINE)


def make_spools() -> list[Spool | None]:
    """As the seller says they lie in the slots."""
    pla, petg = (f"{color[1:]}FF" for _, color in FILAMENTS)
    return [Spool("PLA", pla), Spool("PETG", petg, brand="PETG HF", filament_id="GFG02")]


def make_outside_spool() -> Spool:
    material, color = OUTSIDE
    return Spool(material, f"{color[1:]}FF", rfid=False, brand=material, filament_id="GFN99")
