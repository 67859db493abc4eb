"""Logins to Bambu Lab's cloud, and what it knows of an account's printers and prints: `/api/cloud-accounts`. It reads.

The cloud is asked between transactions: nothing is locked while it takes its time, and nothing is written before it has
answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import sqlalchemy as sa
from flask import Response

from api import context
from api.cloud_asking import asking, end_login, note_refused_extension, read_login
from api.cloud_schemas import (
    CloudAccountSchema,
    CloudAccountsSchema,
    CloudCode,
    CloudHistorySchema,
    CloudLivesSchema,
    CloudPrintersSchema,
    HistoryQuery,
    NewCloudLogin,
)
from api.lists import Columns, PageQuery, json_response, named_list
from api.print_schemas import Deleted
from api.reading import Room
from auth import current_user_id, get_mine, mine
from bambu_cloud import CloudPrint, CloudPrinter, CloudSession, CodeNeeded, PastPrint, TotpNeeded
from errors import Conflict
from farm import cloud_logins
from farm.cloud_logins import StoredLogin
from models import CloudAccount, CloudLoginState, CloudRegion, PrinterConnection, db

blueprint = Room(
    "cloud accounts", __name__, url_prefix="/api/cloud-accounts", description="Logins to Bambu Lab's cloud; read-only"
)

COLUMNS = Columns(
    CloudAccount,
    *("id", "region", "account", "uid", "state", "state_reason", "token_expires_at", "created_at", "updated_at"),
)


def _one(cloud_account_id: int) -> dict[str, Any]:
    db.session.flush()
    return COLUMNS.one(mine(CloudAccount).where(CloudAccount.id == cloud_account_id))


@blueprint.get("")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, CloudAccountsSchema)
def list_accounts(args: dict[str, Any]) -> Response:
    """All logins to Bambu Lab's cloud."""
    query = mine(CloudAccount).order_by(CloudAccount.id)
    return named_list("cloud_accounts", COLUMNS, query, args["limit"], args["offset"])


@blueprint.post("")
@blueprint.arguments(NewCloudLogin)
@blueprint.response(201, CloudAccountSchema)
def log_in(data: dict[str, Any]) -> Response:
    """Log in, with account and password or with a token of a browser. The same account again is the same row, anew.

    Where the cloud wants a code as well, `state` says which, and one that comes by mail has been sent.
    """
    region: CloudRegion = data["region"]
    account: str | None = data.get("account")
    cloud = context.parts().cloud(region)
    outcome: CloudSession | CodeNeeded | TotpNeeded
    if account is None:
        with asking(field="token"):
            outcome = cloud.from_token(data["token"])
    else:
        with asking():
            outcome = cloud.login(account, data["password"])
            if isinstance(outcome, CodeNeeded):
                cloud.send_code(account)
    at, vault, uid = context.now(), context.vault(), getattr(outcome, "uid", None)
    row = cloud_logins.find_account(current_user_id(), region, account=account, uid=uid)
    if row is None:
        row = cloud_logins.begin_account(current_user_id(), region, account or str(uid), now=at)
    if isinstance(outcome, CloudSession):
        cloud_logins.keep_session(row, outcome, vault, now=at)
    else:
        cloud_logins.await_code(row, outcome if isinstance(outcome, TotpNeeded) else None, vault, now=at)
    db.session.flush()
    body = _one(row.id)
    db.session.commit()
    return json_response(body, 201)


@blueprint.get("/<id:cloud_account_id>")
@blueprint.response(200, CloudAccountSchema)
def get_account(cloud_account_id: int) -> Response:
    """One login. Passwords are not kept, and tokens never come back."""
    get_mine(CloudAccount, cloud_account_id)
    return json_response(_one(cloud_account_id))


@blueprint.delete("/<id:cloud_account_id>")
@blueprint.response(200, Deleted)
def remove_account(cloud_account_id: int) -> Response:
    """Forget a login, tokens and all. While a printer's connection uses it, it is 409."""
    row = get_mine(CloudAccount, cloud_account_id, for_update=True)
    users = db.session.execute(
        mine(PrinterConnection, sa.func.count()).where(PrinterConnection.cloud_account_id == cloud_account_id)
    ).scalar_one()
    if users:
        raise Conflict(f"{users} printers are connected with this login. Change those first.", code="account_in_use")
    db.session.delete(row)
    db.session.commit()
    return json_response({"message": "Cloud account removed", "id": cloud_account_id})


@blueprint.post("/<id:cloud_account_id>/code")
@blueprint.arguments(CloudCode)
@blueprint.response(200, CloudAccountSchema)
def finish_login(data: dict[str, Any], cloud_account_id: int) -> Response:
    """Finish a login with the code that was sent, or that the authenticator shows."""
    login = read_login(cloud_account_id, CloudLoginState.code_needed, CloudLoginState.totp_needed)
    cloud = context.parts().cloud(login.region)
    with asking():
        if login.tfa_key is not None:
            session = cloud.login_with_totp(login.tfa_key, data["code"])
        else:
            session = cloud.login_with_code(login.account, data["code"])
    row = get_mine(CloudAccount, cloud_account_id, for_update=True)
    cloud_logins.keep_session(row, session, context.vault(), now=context.now())
    body = _one(cloud_account_id)
    db.session.commit()
    return json_response(body)


@blueprint.post("/<id:cloud_account_id>/send-code")
@blueprint.response(200, CloudAccountSchema)
def send_code(cloud_account_id: int) -> Response:
    """Have another code sent: the last one got lost, or is no longer valid."""
    login = read_login(cloud_account_id, CloudLoginState.code_needed)
    with asking():
        context.parts().cloud(login.region).send_code(login.account)
    return json_response(_one(cloud_account_id))


@blueprint.post("/<id:cloud_account_id>/refresh")
@blueprint.response(200, CloudAccountSchema)
def extend_login(cloud_account_id: int) -> Response:
    """Extend a login now. The worker does it by itself, a week before the login ends."""
    login = read_login(cloud_account_id, CloudLoginState.connected)
    if login.refresh_token is None:
        raise Conflict("A pasted token cannot be extended. Log in again, or paste a new one.", code="login_needed")
    with asking(login_ended=partial(note_refused_extension, login)):
        session = context.parts().cloud(login.region).refresh(login.refresh_token, uid=login.uid)
    if not cloud_logins.keep_extension(login, session, context.vault(), now=context.now()):
        raise Conflict("Somebody else logged in or out at the same moment. Read it again.")
    body = _one(cloud_account_id)
    db.session.commit()
    return json_response(body)


def _asked_of(cloud_account_id: int) -> tuple[StoredLogin, str]:
    """A good login, and its token."""
    login = read_login(cloud_account_id, CloudLoginState.connected)
    if login.token is None:
        raise Conflict("This account is not logged in.", code="login_needed")
    return login, login.token


def _own_printers(serials: Iterable[str | None]) -> dict[str | None, int]:
    """The user's printer of each of these serial numbers that one has."""
    rows = db.session.execute(
        mine(PrinterConnection, PrinterConnection.serial_number, PrinterConnection.printer_id)
        .where(PrinterConnection.serial_number.in_({each for each in serials if each is not None}))
        .order_by(PrinterConnection.id.desc())
    )
    return {row.serial_number: row.printer_id for row in rows}


@blueprint.get("/<id:cloud_account_id>/printers")
@blueprint.response(200, CloudPrintersSchema)
def list_cloud_printers(cloud_account_id: int) -> Response:
    """The printers that are bound to the account, asked of the cloud just now."""
    login, token = _asked_of(cloud_account_id)
    with asking(login_ended=partial(end_login, login)):
        found = context.parts().cloud(login.region).printers(token)
    own = _own_printers(each.serial for each in found)
    return _listed([_printer(each, own.get(each.serial)) for each in found])


def _listed(printers: list[dict[str, Any]]) -> Response:
    return json_response({"printers": printers, "total": len(printers)})


def _printer(each: CloudPrinter, printer_id: int | None) -> dict[str, Any]:
    # The access code is left out: it opens the printer to whoever stands in its network.
    return {
        "serial_number": each.serial,
        "name": each.name,
        "model": each.model,
        "is_online": each.is_online,
        "state": each.activity,
        "nozzle_diameter_mm": each.nozzle_diameter_mm,
        "printer_id": printer_id,
    }


@blueprint.get("/<id:cloud_account_id>/live")
@blueprint.response(200, CloudLivesSchema)
def list_live(cloud_account_id: int) -> Response:
    """What each printer is at, as the cloud's web side knows it: coarse, and minutes late."""
    login, token = _asked_of(cloud_account_id)
    with asking(login_ended=partial(end_login, login)):
        found = context.parts().cloud(login.region).live(token)
    own = _own_printers(each.serial for each in found)
    return _listed([_live(each, own.get(each.serial)) for each in found])


def _live(each: CloudPrint, printer_id: int | None) -> dict[str, Any]:
    return {
        "serial_number": each.serial,
        "name": each.name,
        "is_online": each.is_online,
        "state": each.activity,
        "title": each.title,
        "progress_percent": each.progress_percent,
        "estimated_seconds": each.estimated_seconds,
        "started_at": each.started_at,
        "printer_id": printer_id,
    }


@blueprint.get("/<id:cloud_account_id>/history")
@blueprint.arguments(HistoryQuery, location="query")
@blueprint.response(200, CloudHistorySchema)
def list_history(args: dict[str, Any], cloud_account_id: int) -> Response:
    """A page of the account's past prints, newest first; the next one begins `after` the last `cloud_print_id`."""
    login, token = _asked_of(cloud_account_id)
    with asking(login_ended=partial(end_login, login)):
        found = context.parts().cloud(login.region).history(token, **args)
    own = _own_printers(each.serial for each in found.prints)
    return json_response(
        {"prints": [_past_print(each, own.get(each.serial)) for each in found.prints], "total": found.total}
    )


def _past_print(each: PastPrint, printer_id: int | None) -> dict[str, Any]:
    return {
        "cloud_print_id": each.print_id,
        "title": each.title,
        "serial_number": each.serial,
        "printer_name": each.printer_name,
        "printer_id": printer_id,
        "model": each.model,
        "state": each.activity,
        "started_at": each.started_at,
        "ended_at": each.ended_at,
        "estimated_seconds": each.estimated_seconds,
        "weight_grams": each.weight_grams,
        "plate": each.plate,
        "filaments": [
            {
                "ams_id": used.ams_id,
                "tray_id": used.slot_id,
                "material_type": used.material,
                "color": used.color,
                "weight_grams": used.weight_grams,
            }
            for used in each.filaments
        ],
    }
