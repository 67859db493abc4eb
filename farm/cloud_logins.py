"""A login to Bambu Lab's cloud as a row: kept, waiting for a code, over, extended before it ends. Nothing here commits.

The cloud is asked by others, between their transactions. So what they bring back is written only onto the version of
the row that they read: another login, made in the meantime, is never undone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from bambu_cloud import CloudSession, TotpNeeded
from models import CloudAccount, CloudLoginState, CloudRegion, count_changed, db
from vault import Vault

# Tokens live 90 days or more. A refused extension is tried again by and by: for some accounts it always is.
EXTEND_BEFORE = timedelta(days=7)
EXTEND_AGAIN = timedelta(hours=6)
CODE_WANTED = "a code was sent to you: enter it"
TOTP_WANTED = "enter the code that your authenticator shows"
UNREADABLE = "the stored login cannot be read: log in again"
_SECRETS = ("token", "refresh_token", "tfa_key")


@dataclass(frozen=True, slots=True)
class StoredLogin:
    """A login as it was read: plain values, good outside the transaction. `version` says whether it still stands."""

    account_id: int
    version: int
    region: CloudRegion
    account: str
    uid: str | None
    token: str | None = field(repr=False)
    refresh_token: str | None = field(repr=False)
    tfa_key: str | None = field(repr=False)
    expires_at: datetime | None

    @property
    def session(self) -> CloudSession | None:
        if self.token is None or self.uid is None:
            return None
        return CloudSession(self.token, self.refresh_token, self.expires_at, self.uid)


def read_login(row: CloudAccount, vault: Vault) -> StoredLogin:
    """Raises SealBroken."""
    opened = {
        name: vault.open(sealed, row.secret_owner(name)) if (sealed := getattr(row, f"{name}_sealed")) else None
        for name in _SECRETS
    }
    return StoredLogin(
        account_id=row.id,
        version=row.version,
        region=row.region,
        account=row.account,
        uid=row.uid,
        expires_at=row.token_expires_at,
        **opened,
    )


def find_account(user_id: int, region: CloudRegion, *, account: str | None, uid: str | None) -> CloudAccount | None:
    """The row of this account of the cloud, by how its owner logs in, else by its number; locked."""
    known_by = (
        CloudAccount.account == account
        if account is not None
        else sa.or_(CloudAccount.uid == uid, CloudAccount.account == uid)
    )
    return db.session.execute(
        sa.select(CloudAccount)
        .where(CloudAccount.user_id == user_id, CloudAccount.region == region, known_by)
        .order_by(CloudAccount.id)
        .limit(1)
        .with_for_update()
    ).scalar_one_or_none()


def begin_account(user_id: int, region: CloudRegion, account: str, *, now: datetime) -> CloudAccount:
    row = CloudAccount(
        user_id=user_id,
        region=region,
        account=account,
        state=CloudLoginState.login_needed,
        version=0,
        created_at=now,
        updated_at=now,
    )
    db.session.add(row)
    return row


def keep_session(row: CloudAccount, session: CloudSession, vault: Vault, *, now: datetime) -> None:
    """The login is good."""
    row.state, row.state_reason = CloudLoginState.connected, None
    row.uid, row.token_expires_at = session.uid, session.expires_at
    _seal(row, vault, token=session.access_token, refresh_token=session.refresh_token, tfa_key=None)
    row.version += 1
    row.updated_at = now


def await_code(row: CloudAccount, totp: TotpNeeded | None, vault: Vault, *, now: datetime) -> None:
    """The password was right, a code is wanted as well. The login before this one is given up."""
    row.state = CloudLoginState.code_needed if totp is None else CloudLoginState.totp_needed
    row.state_reason = CODE_WANTED if totp is None else TOTP_WANTED
    row.token_expires_at = None
    _seal(row, vault, token=None, refresh_token=None, tfa_key=totp.tfa_key if totp is not None else None)
    row.version += 1
    row.updated_at = now


def _seal(row: CloudAccount, vault: Vault, **secrets: str | None) -> None:
    for name, value in secrets.items():
        setattr(row, f"{name}_sealed", vault.seal(value, row.secret_owner(name)) if value is not None else None)


def end_login(account_id: int, version: int, reason: str, *, now: datetime) -> bool:
    """The cloud no longer takes this login, and a person has to make another. False when one was made already."""
    return _change(
        account_id,
        version,
        state=CloudLoginState.login_needed,
        state_reason=reason,
        token_sealed=None,
        refresh_token_sealed=None,
        tfa_key_sealed=None,
        token_expires_at=None,
        version=version + 1,
        updated_at=now,
    )


def keep_extension(login: StoredLogin, session: CloudSession, vault: Vault, *, now: datetime) -> bool:
    """The new token in the old one's place. False when another login was made in the meantime."""
    row = db.session.get(CloudAccount, login.account_id, with_for_update=True, populate_existing=True)
    if row is None or row.version != login.version or row.state is not CloudLoginState.connected:
        return False
    keep_session(row, session, vault, now=now)
    return True


def note_refused_extension(login: StoredLogin, *, now: datetime) -> bool:
    """The token is still good for as long as it was going to be. False when another login was made meanwhile."""
    until = f" before {login.expires_at:%Y-%m-%d}" if login.expires_at is not None else ""
    return _change(
        login.account_id, login.version, state_reason=f"could not be extended: log in again{until}", updated_at=now
    )


def due_for_extension(now: datetime) -> list[tuple[int, int]]:
    """(id, version) of the logins that end soon and can be extended."""
    query = sa.select(CloudAccount.id, CloudAccount.version).where(*_is_due(now)).order_by(CloudAccount.id)
    return [(row.id, row.version) for row in db.session.execute(query)]


def claim_extension(account_id: int, version: int, *, now: datetime) -> bool:
    """Of several processes that see the same login end, one gets to extend it: a refresh token works once."""
    claim = (
        sa.update(CloudAccount)
        .where(CloudAccount.id == account_id, CloudAccount.version == version, *_is_due(now))
        .values(updated_at=now)
    )
    return count_changed(claim) == 1


def _is_due(now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        CloudAccount.state == CloudLoginState.connected,
        CloudAccount.refresh_token_sealed.is_not(None),
        CloudAccount.token_expires_at < now + EXTEND_BEFORE,
        CloudAccount.updated_at < now - EXTEND_AGAIN,
    )


def _change(account_id: int, at_version: int, **values: object) -> bool:
    changed = count_changed(
        sa.update(CloudAccount)
        .where(CloudAccount.id == account_id, CloudAccount.version == at_version)
        .values(**values)
    )
    return changed == 1
