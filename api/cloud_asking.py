"""Asking Bambu Lab's cloud for a view: outside of any transaction, and with each of its faults as an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from api import context
from auth import get_mine
from bambu_cloud import (
    Challenged,
    CloudError,
    CodeExpired,
    LoginNeeded,
    RateLimited,
    Refused,
    WrongCode,
    WrongCredentials,
)
from errors import Conflict, Invalid, Problem, TooManyRequests, UpstreamFailed
from farm import cloud_logins
from farm.cloud_logins import StoredLogin
from models import CloudAccount, CloudLoginState, db
from vault import SealBroken


@contextmanager
def asking(*, login_ended: Callable[[str], None] | None = None, field: str | None = None) -> Iterator[None]:
    """No transaction is open inside, and whatever keeps the cloud from answering becomes our answer.

    `login_ended` is told, before that, why a person has to log in again; `field` is the body's that is at fault then.
    """
    db.session.rollback()
    try:
        yield
    except CloudError as fault:
        if login_ended is not None and isinstance(fault, LoginNeeded):
            login_ended(fault.message)
        raise _problem_of(fault, field) from None


def _problem_of(fault: CloudError, field: str | None) -> Problem:
    sentence = f"{fault.message[0].upper()}{fault.message[1:]}."
    match fault:
        case WrongCredentials():
            return Invalid({"password": [sentence]}, code="wrong_cloud_login")
        case LoginNeeded() if field is not None:
            return Invalid({field: [sentence]}, code="wrong_cloud_login")
        case WrongCode():
            return Invalid({"code": [sentence]}, code="wrong_cloud_code")
        case CodeExpired():
            return Invalid({"code": [sentence]}, code="cloud_code_expired")
        case LoginNeeded():
            return Conflict(sentence, code="login_needed")
        case Refused():
            return Conflict(sentence, code="cloud_refused")
        case RateLimited():
            return TooManyRequests(sentence, retry_after_seconds=fault.retry_after_seconds)
        case Challenged():
            return UpstreamFailed(sentence, code="cloud_challenged")
        case _:
            return UpstreamFailed(sentence, code="cloud_failed")


def read_login(cloud_account_id: int, *states: CloudLoginState) -> StoredLogin:
    """What the cloud is asked with, of an account of the user's in one of these states.

    Raises:
        Conflict: it is in another state, or cannot be read.
    """
    row = get_mine(CloudAccount, cloud_account_id)
    if row.state not in states:
        if CloudLoginState.connected in states:
            raise Conflict(f"This account is not logged in: {row.state_reason}.", code="login_needed")
        raise Conflict("No code is expected here: log in first.", code="no_code_expected")
    try:
        return cloud_logins.read_login(row, context.vault())
    except SealBroken:
        raise Conflict("The stored login cannot be read. Log in again.", code="login_needed") from None


def end_login(login: StoredLogin, reason: str) -> None:
    cloud_logins.end_login(login.account_id, login.version, reason, now=context.now())
    db.session.commit()


def note_refused_extension(login: StoredLogin, reason: str) -> None:
    cloud_logins.note_refused_extension(login, now=context.now())
    db.session.commit()
