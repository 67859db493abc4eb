"""What every act of the demo works with."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.demo_checks import CheckList
from simulator.demo_screen import Screen
from simulator.demo_seller import Seller
from simulator.demo_stage import Stage


@dataclass(frozen=True, slots=True)
class Show:
    stage: Stage
    screen: Screen
    checks: CheckList
    seller: Seller
