"""The maker's generic filament profiles: what a printer is told of a spool that is no product of its maker's."""

from __future__ import annotations

# Material -> the id that a printer keeps for "Generic ..." of it. Source: lists in several public programs, agreeing.
_GENERIC_PROFILES = {
    "ABS": "GFB99",
    "ASA": "GFB98",
    "BVOH": "GFS97",
    "EVA": "GFR99",
    "HIPS": "GFS98",
    "PA": "GFN99",
    "PA-CF": "GFN98",
    "PC": "GFC99",
    "PCTG": "GFG97",
    "PE": "GFP99",
    "PE-CF": "GFP98",
    "PETG": "GFG99",
    "PETG-CF": "GFG98",
    "PHA": "GFR98",
    "PLA": "GFL99",
    "PLA-CF": "GFL98",
    "PP": "GFP97",
    "PP-CF": "GFP96",
    "PP-GF": "GFP95",
    "PPA-CF": "GFN97",
    "PPA-GF": "GFN96",
    "PVA": "GFS99",
    "TPU": "GFU99",
}


def generic_profile(material_type: str) -> str | None:
    """The generic profile of a material, in whatever case it is written; None for one that has none."""
    return _GENERIC_PROFILES.get(material_type.upper())
