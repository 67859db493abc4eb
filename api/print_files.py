"""Sliced files: `/api/print-files`."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from flask import Response, request
from flask_smorest.fields import Upload
from marshmallow import fields
from sqlalchemy.dialects import postgresql, sqlite
from werkzeug.utils import secure_filename

from api import context
from api.fields import Body, Moment
from api.lists import Columns, PageQuery, json_response, named_list
from api.print_schemas import Deleted
from api.reading import Room
from auth import current_user_id, get_mine, mine
from errors import Conflict, Invalid, TooLarge
from farm.print_files import FileTooLarge, NotPrintable, folder_of, store_print_file
from models import OPEN_STATUSES, PrintFile, ProductProfile, ScheduledPrint, StartIntent, db

blueprint = Room("print files", __name__, url_prefix="/api/print-files", description="Sliced .gcode.3mf files")

MULTIPART_OVERHEAD = 16 * 1024
COLUMNS = Columns(PrintFile, "id", "file_name", "sha256", "size_bytes", "plates", "created_at")


class PrintFileSchema(Body):
    id = fields.Integer(required=True)
    file_name = fields.String(required=True)
    sha256 = fields.String(required=True)
    size_bytes = fields.Integer(required=True)
    plates = fields.List(fields.Integer(), required=True, metadata={"description": "Numbers of the sliced plates"})
    created_at = Moment(required=True)


class PrintFilesSchema(Body):
    print_files = fields.List(fields.Nested(PrintFileSchema), required=True)
    total = fields.Integer(required=True)


class UploadForm(Body):
    file = Upload(required=True)


def allow_large_upload() -> None:
    """Only this route takes more than the usual body."""
    if request.endpoint == f"{blueprint.name}.{upload_file.__name__}":
        request.max_content_length = context.settings().max_upload_bytes + MULTIPART_OVERHEAD


def _one(file_id: int) -> dict[str, Any]:
    db.session.flush()
    return COLUMNS.one(mine(PrintFile).where(PrintFile.id == file_id))


@blueprint.get("")
@blueprint.arguments(PageQuery, location="query")
@blueprint.response(200, PrintFilesSchema)
def list_files(args: dict[str, Any]) -> Response:
    """All uploaded files."""
    query = mine(PrintFile).order_by(PrintFile.id)
    return named_list("print_files", COLUMNS, query, args["limit"], args["offset"])


@blueprint.post("")
@blueprint.arguments(UploadForm, location="files")
@blueprint.response(201, PrintFileSchema)
def upload_file(data: dict[str, Any]) -> Response:
    """Upload a sliced `.gcode.3mf`. The same file again answers the one that is there."""
    upload = data["file"]
    settings = context.settings()
    try:
        stored = store_print_file(
            upload.stream, folder_of(settings.files_dir, current_user_id()), max_bytes=settings.max_upload_bytes
        )
    except FileTooLarge:
        raise TooLarge(f"A file may have at most {settings.max_upload_bytes // 2**20} MB.") from None
    except NotPrintable as error:
        raise Invalid({"file": [str(error)]}, str(error), code="not_printable") from None
    insert = postgresql.insert if db.engine.dialect.name == "postgresql" else sqlite.insert
    # Of two uploads of one file at the same moment both find the row that is there after them.
    db.session.execute(
        insert(PrintFile)
        .values(
            user_id=current_user_id(),
            file_name=secure_filename(upload.filename or "")[-255:] or "upload.gcode.3mf",
            sha256=stored.sha256,
            size_bytes=stored.size_bytes,
            plates=stored.plates,
            created_at=context.now(),
        )
        .on_conflict_do_nothing(index_elements=["user_id", "sha256"])
    )
    body = COLUMNS.one(mine(PrintFile).where(PrintFile.sha256 == stored.sha256))
    db.session.commit()
    return json_response(body, 201)


@blueprint.get("/<id:file_id>")
@blueprint.response(200, PrintFileSchema)
def get_file(file_id: int) -> Response:
    """One uploaded file."""
    get_mine(PrintFile, file_id)
    return json_response(_one(file_id))


@blueprint.delete("/<id:file_id>")
@blueprint.response(200, Deleted)
def remove_file(file_id: int) -> Response:
    """Delete a file. While a print that is not finished or a product profile uses it, it is 409."""
    file = get_mine(PrintFile, file_id, for_update=True)
    user_id = current_user_id()
    used_by_print = db.session.execute(
        mine(ScheduledPrint, sa.func.count()).where(
            ScheduledPrint.print_file_id == file_id, ScheduledPrint.status.in_(OPEN_STATUSES)
        )
    ).scalar_one()
    used_by_profile = db.session.execute(
        mine(ProductProfile, sa.func.count()).where(ProductProfile.print_file_id == file_id)
    ).scalar_one()
    if used_by_print or used_by_profile:
        raise Conflict(
            f"{used_by_print} unfinished prints and {used_by_profile} product profiles use this file.",
            code="file_in_use",
        )
    for model in (ScheduledPrint, StartIntent):
        db.session.execute(
            sa.update(model).where(model.user_id == user_id, model.print_file_id == file_id).values(print_file_id=None)
        )
    path = folder_of(context.settings().files_dir, user_id) / file.sha256
    db.session.delete(file)
    db.session.commit()
    # After the commit: bytes without a row are waste, a row without bytes would be a lie.
    path.unlink(missing_ok=True)
    return json_response({"message": "File deleted", "id": file_id})
