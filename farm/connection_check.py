"""What works between us and a printer, and what to press on it where something does not. All in one answer."""

from __future__ import annotations

from typing import Any, Protocol

from bambu_client import LinkStatus
from bambu_files import StorageFault
from bambu_report import PrinterState, Storage


class Link(Protocol):
    """See `bambu_client.PrinterLink`."""

    @property
    def status(self) -> LinkStatus: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def state(self) -> PrinterState: ...


class Files(Protocol):
    """See `bambu_files.PrinterStorage`."""

    def list(self, directory: str = "") -> tuple[Any, ...]: ...


def check_connection(link: Link, files: Files) -> dict[str, object]:
    """`{"ok": bool, "checks": [{"check", "ok": true | false | null, "message", "advice"}]}`; null: cannot be told."""
    checks = [_reached(link), _heard(link)]
    if link.status is LinkStatus.connected:
        checks += [_files(files), _storage(link.state), _control(link.state)]
    return {"ok": all(check["ok"] is not False for check in checks), "checks": checks}


def _check(name: str, ok: bool | None, message: str, advice: str | None = None) -> dict[str, object]:
    return {"check": name, "ok": ok, "message": message, "advice": advice}


def _reached(link: Link) -> dict[str, object]:
    match link.status:
        case LinkStatus.connected:
            return _check("connection", True, "The printer lets us in.")
        case LinkStatus.unauthorized:
            advice = "On the printer: Settings, LAN Only Mode (or WLAN), Access Code. Enter the code that stands there."
            return _check("connection", False, link.reason or "The printer refuses the access code.", advice)
        case LinkStatus.error:
            advice = "On the printer: Settings, Device: compare the serial number. If it was reset, confirm it anew."
            return _check("connection", False, link.reason or "Another machine answers there.", advice)
        case _:
            advice = "Is it on, and in the same network? On the printer: Settings, WLAN shows its address."
            return _check("connection", False, link.reason or "The printer does not answer.", advice)


def _heard(link: Link) -> dict[str, object]:
    if link.state.known:
        return _check("reports", True, f"It reports: {link.state.state}.")
    advice = "Is the serial number exactly as the printer shows it, capital letters too?"
    return _check("reports", False, "No full report has come.", advice)


def _files(files: Files) -> dict[str, object]:
    try:
        files.list()
    except StorageFault as error:
        advice = "Switch LAN Only Mode and Developer Mode on, and put a card or stick in."
        return _check("files", False, f"Files cannot be sent: {error.reason}.", advice)
    return _check("files", True, "Files can be sent.")


def _storage(state: PrinterState) -> dict[str, object]:
    match state.storage:
        case Storage.ok:
            return _check("storage", True, "It has a usable card or stick.")
        case None:
            return _check("storage", None, "It does not say whether it has a card or stick.")
        case Storage.none:
            return _check("storage", False, "It has no card or stick.", "Put a FAT32 card or stick in.")
        case _:
            advice = "Format it at the printer, or put another one in."
            return _check("storage", False, f"Its card or stick is {state.storage.replace('_', ' ')}.", advice)


def _control(state: PrinterState) -> dict[str, object]:
    if state.developer_mode is False:
        advice = "On the printer: Settings, LAN Only Mode: switch it on, then Developer Mode. The access code changes."
        return _check("control", False, "It takes commands only from its maker's own programs.", advice)
    if state.developer_mode is None:
        return _check("control", None, "This model says only at the first command whether it takes ours.")
    return _check("control", True, "It takes our commands.")
