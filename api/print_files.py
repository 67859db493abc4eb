"""Sliced files: `/api/print-files`."""

from __future__ import annotations

import contextlib
from typing import Any

import sqlalchemy as sa
from flask import Response, request
from flask_smorest.fields import Upload
from marshmallow import fields
from sqlalchemy.dialects import postgresql, sqlite
from werkzeug.utils import secure_filename

from api import context
from api.fields import Body, Moment, Num
from api.lists import Columns, PageQuery, json_response, named_list
from api.print_schemas import Deleted
from api.reading import Room
from auth import current_user_id, get_mine, mine
from errors import Conflict, Invalid, NotFound, TooLarge
from farm.plate_facts import PlateFacts, is_read
from farm.print_files import (
    FileTooLarge,
    NotPrintable,
    ReceivedFile,
    describe,
    drop_bytes,
    folder_of,
    lock_files,
    path_of,
    plate_numbers,
    read_picture,
    received,
)
from models import OPEN_STATUSES, PrintBatch, PrintFile, ProductProfile, ScheduledPrint, StartIntent, db

blueprint = Room("print files", __name__, url_prefix="/api/print-files", description="Sliced .gcode.3mf files")

MULTIPART_OVERHEAD = 16 * 1024
# A picture is nothing but a picture, whatever a browser may think of its bytes.
PICTURE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "X-Content-Type-Options": "nosniff",
}


def _finish(row: dict[str, Any]) -> None:
    row["plates"] = [each if is_read(each) else PlateFacts.from_json(each).to_json() for each in row["plates"]]


COLUMNS = Columns(PrintFile, "id", "file_name", "sha256", "size_bytes", "plates", "created_at", finish=_finish)


class PlateFilamentSchema(Body):
    filament_id = fields.Integer(required=True, metadata={"description": "The slicer's number of it, from 1"})
    material_type = fields.String(required=True, allow_none=True)
    color = fields.String(required=True, allow_none=True, metadata={"description": "#RRGGBB"})
    grams = Num(required=True, allow_none=True)
    meters = Num(required=True, allow_none=True)
    nozzle_temp = fields.Integer(required=True, allow_none=True)
    vendor_profile = fields.String(required=True, allow_none=True, metadata={"description": "Such as GFA00"})


class PlateSchema(Body):
    plate = fields.Integer(required=True)
    print_minutes = fields.Integer(required=True, allow_none=True)
    grams = Num(required=True, allow_none=True)
    filaments = fields.List(fields.Nested(PlateFilamentSchema), required=True)
    printer_model = fields.String(required=True, allow_none=True, metadata={"description": "It was sliced for"})
    nozzle_diameters_mm = fields.List(Num(), required=True)
    bed_type = fields.String(required=True, allow_none=True)
    nozzle_temp = fields.Integer(required=True, allow_none=True)
    bed_temp = fields.Integer(required=True, allow_none=True)
    has_thumbnail = fields.Boolean(required=True)


class PrintFileSchema(Body):
    id = fields.Integer(required=True)
    file_name = fields.String(required=True)
    sha256 = fields.String(required=True)
    size_bytes = fields.Integer(required=True)
    plates = fields.List(fields.Nested(PlateSchema), required=True)
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
    upload, settings, user_id = data["file"], context.settings(), current_user_id()
    folder = folder_of(settings.files_dir, user_id)
    try:
        with received(upload.stream, folder, max_bytes=settings.max_upload_bytes) as file:
            lock_files(user_id)
            _insert(file, upload.filename or "")
            file.keep()
            body = COLUMNS.one(mine(PrintFile).where(PrintFile.sha256 == file.sha256))
            db.session.commit()
    except FileTooLarge:
        raise TooLarge(f"A file may have at most {settings.max_upload_bytes // 2**20} MB.") from None
    except NotPrintable as error:
        raise Invalid({"file": [str(error)]}, str(error), code="not_printable") from None
    return json_response(body, 201)


def _insert(file: ReceivedFile, file_name: str) -> None:
    """The row of an upload, unless there is one of the same bytes: that one learns what was read of them."""
    insert = postgresql.insert if db.engine.dialect.name == "postgresql" else sqlite.insert
    plates = [each.to_json() for each in file.plates]
    db.session.execute(
        insert(PrintFile)
        .values(
            user_id=current_user_id(),
            file_name=secure_filename(file_name)[-255:] or "upload.gcode.3mf",
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            plates=plates,
            created_at=context.now(),
        )
        .on_conflict_do_update(index_elements=["user_id", "sha256"], set_={"plates": plates})
    )


@blueprint.get("/<id:file_id>")
@blueprint.response(200, PrintFileSchema)
def get_file(file_id: int) -> Response:
    """One uploaded file. One that was uploaded before plates were read is read now."""
    _describe(get_mine(PrintFile, file_id))
    body = _one(file_id)
    db.session.commit()
    return json_response(body)


def _describe(file: PrintFile) -> None:
    # What was taken in then and would not be today stays: its plates are not known, and it says so when it is started.
    with contextlib.suppress(NotPrintable):
        describe(file, context.settings().files_dir)


@blueprint.get("/<id:file_id>/plates/<id:plate>/thumbnail")
@blueprint.response(200, {"type": "string", "format": "binary"}, content_type="image/png")
def get_thumbnail(file_id: int, plate: int) -> Response:
    """The slicer's picture of a plate, a PNG. 404 when the file has none."""
    file = get_mine(PrintFile, file_id)
    path, is_there = path_of(file, context.settings().files_dir), plate in plate_numbers(file)
    # Nobody waits for a row or a connection while the file is read.
    db.session.rollback()
    picture = read_picture(path, plate) if is_there else None
    if picture is None:
        raise NotFound
    disposition = {"Content-Disposition": f'inline; filename="plate-{plate}.png"'}
    return Response(picture, mimetype="image/png", headers=PICTURE_HEADERS | disposition)


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
    # Further plates stand in JSON, which no key of the database holds.
    profiles = mine(ProductProfile, ProductProfile.print_file_id, ProductProfile.more_plates).where(
        sa.or_(ProductProfile.print_file_id == file_id, sa.cast(ProductProfile.more_plates, sa.String) != "[]")
    )
    used_by_profile = sum(
        file_id in (main, *(plate["print_file_id"] for plate in further))
        for main, further in db.session.execute(profiles)
    )
    if used_by_print or used_by_profile:
        raise Conflict(
            f"{used_by_print} unfinished prints and {used_by_profile} product profiles use this file.",
            code="file_in_use",
        )
    for model in (ScheduledPrint, StartIntent, PrintBatch):
        db.session.execute(
            sa.update(model).where(model.user_id == user_id, model.print_file_id == file_id).values(print_file_id=None)
        )
    path = path_of(file, context.settings().files_dir)
    db.session.delete(file)
    db.session.commit()
    if path.exists():
        drop_bytes(path, user_id)
    return json_response({"message": "File deleted", "id": file_id})
