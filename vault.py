"""Secrets at rest: encrypted with rotating keys and bound to the row that owns them."""

from __future__ import annotations

import json

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class SealBroken(Exception):
    """The text was sealed with other keys, for another row, or was changed."""


class Vault:
    """Seals short texts. `keys`: comma-separated Fernet keys, the newest first; old ones still open.

    `owner` names table, column and row ("printer_connections.access_code:7:12"). It lies inside the sealed text, so a
    ciphertext copied to another row of the database does not open there.
    """

    def __init__(self, keys: str) -> None:
        self._fernet = MultiFernet([Fernet(key.strip()) for key in keys.split(",") if key.strip()])

    def seal(self, text: str, owner: str) -> str:
        return self._fernet.encrypt(json.dumps([owner, text]).encode()).decode()

    def open(self, sealed: str, owner: str) -> str:
        """The text again. Raises SealBroken."""
        try:
            sealed_for, text = json.loads(self._fernet.decrypt(sealed.encode()))
        except (InvalidToken, ValueError):
            raise SealBroken(f"{owner}: cannot be opened with the present ENCRYPTION_KEYS") from None
        if sealed_for != owner:
            raise SealBroken(f"{owner}: was sealed for another row")
        return str(text)
