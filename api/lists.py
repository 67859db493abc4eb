"""What goes out: one column list per resource, from which rows, JSON and schema are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import urlencode

import orjson
import sqlalchemy as sa
from flask import Response, request
from marshmallow import EXCLUDE, Schema, fields, validate

from columns import Scaled, UtcDateTime
from models import db

DEFAULT_LIMIT = 200
MAX_LIMIT = 1000
MAX_OFFSET = 2**31 - 1
JSON_OPTIONS = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z

Finish = Callable[[dict[str, Any]], None]


class QueryInt(fields.Integer):
    """A whole number in a query string, in plain ASCII digits."""

    def _validated(self, value: Any) -> int:
        # Up to 18 digits: beyond that, SQLite has no such whole number.
        if isinstance(value, str) and not (value.isascii() and value.lstrip("-").isdigit() and len(value) < 19):
            raise self.make_error("invalid")
        return int(super()._validated(value))


class Query(Schema):
    """Unknown query keys are ignored."""

    class Meta:
        unknown = EXCLUDE


class PageQuery(Query):
    limit = QueryInt(load_default=DEFAULT_LIMIT, validate=validate.Range(1, MAX_LIMIT))
    offset = QueryInt(load_default=0, validate=validate.Range(0, MAX_OFFSET))


def number(value: Decimal | None) -> float | int | None:
    """An exact decimal as a JSON number, whole ones without a fraction."""
    if value is None:
        return None
    return int(value) if value == value.to_integral_value() else float(value)


def default(value: Any) -> Any:
    if isinstance(value, Decimal):
        return number(value)
    raise TypeError(type(value).__name__)


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    response = Response(
        orjson.dumps(value, default=default, option=JSON_OPTIONS), status=status, mimetype="application/json"
    )
    if headers:
        response.headers.update(headers)
    return response


class Column(NamedTuple):
    name: str
    expression: sa.ColumnElement[Any]
    convert: Callable[[Any], Any] | None


def _fast(name: str, column: Any) -> Column:
    """The column without SQLAlchemy's per-value Python: orjson writes naive UTC times and whole numbers by itself."""
    kind = column.type
    if isinstance(kind, UtcDateTime):
        return Column(name, sa.type_coerce(column, sa.DateTime(timezone=True)).label(name), None)
    if isinstance(kind, Scaled):
        scale: int = 10**kind.places

        def unscale(value: int) -> float | int:
            return value // scale if value % scale == 0 else value / scale

        return Column(name, sa.type_coerce(column, sa.BigInteger).label(name), unscale)
    if isinstance(kind, sa.Enum):
        return Column(name, sa.type_coerce(column, sa.String).label(name), None)
    return Column(name, column.label(name), None)


class Columns:
    """A resource's column list. `extra` selects more values under other names; `finish` completes each row's dict."""

    def __init__(
        self, model: Any, *names: str, extra: Mapping[str, Any] | None = None, finish: Finish | None = None
    ) -> None:
        chosen = [_fast(name, getattr(model, name)) for name in names]
        chosen += [_fast(name, expression) for name, expression in (extra or {}).items()]
        self.expressions = [column.expression for column in chosen]
        self._names = [column.name for column in chosen]
        self._converts = [(column.name, column.convert) for column in chosen if column.convert]
        self._finish = finish

    def read(self, rows: Sequence[Any]) -> list[dict[str, Any]]:
        names, converts, finish = self._names, self._converts, self._finish
        found = [dict(zip(names, row, strict=False)) for row in rows]
        for row in found:
            for name, convert in converts:
                if row[name] is not None:
                    row[name] = convert(row[name])
            if finish is not None:
                finish(row)
        return found

    def all(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """Rows of a query as JSON-ready dicts; the query's own columns are replaced by this list.

        On the session's connection: plain rows need none of what the ORM does for objects. Flush before.
        """
        return self.run(query.with_only_columns(*self.expressions))

    def run(self, statement: sa.Select[Any], parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Rows of a statement that selects these columns already."""
        return self.read(db.session.connection().execute(statement, parameters).all())

    def one(self, query: sa.Select[Any]) -> dict[str, Any]:
        """The one row of a query, after flushing what is pending."""
        return self.all(query)[0]


class Listing:
    """A query of one resource, built once and run page by page; `parameters` fill its bind parameters."""

    def __init__(self, columns: Columns, query: sa.Select[Any]) -> None:
        self._columns = columns
        self._rows = (
            query.with_only_columns(*columns.expressions).limit(sa.bindparam("limit")).offset(sa.bindparam("offset"))
        )
        self._count = query.order_by(None).with_only_columns(sa.func.count())

    def page(self, limit: int, offset: int, **parameters: Any) -> tuple[list[dict[str, Any]], int]:
        """(rows of the page, how many there are in all). Asks for one row more, and counts only when that came."""
        rows = self._columns.run(self._rows, {"limit": limit + 1, "offset": offset, **parameters})
        if len(rows) <= limit and (rows or offset == 0):
            return rows, offset + len(rows)
        return rows[:limit], db.session.execute(self._count, parameters).scalar_one()


def page(columns: Columns, query: sa.Select[Any], limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
    """(rows of the page, how many there are in all)."""
    return Listing(columns, query).page(limit, offset)


def bare_list(columns: Columns, query: sa.Select[Any], limit: int, offset: int) -> Response:
    """A bare array, with the full count and the next page in the headers."""
    return bare_page(*page(columns, query, limit, offset), limit, offset)


def bare_page(rows: list[dict[str, Any]], total: int, limit: int, offset: int) -> Response:
    headers = {"X-Total-Count": str(total)}
    if offset + len(rows) < total:
        others = [(key, value) for key, value in request.args.items(multi=True) if key not in ("limit", "offset")]
        following = urlencode([*others, ("limit", limit), ("offset", offset + limit)])
        headers["Link"] = f'<{request.path}?{following}>; rel="next"'
    return json_response(rows, headers=headers)


def named_list(plural: str, columns: Columns, query: sa.Select[Any], limit: int, offset: int) -> Response:
    """`{"<plural>": [...], "total": n}`."""
    rows, total = page(columns, query, limit, offset)
    return json_response({plural: rows, "total": total})
