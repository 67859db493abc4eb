"""Changes that SQLite cannot make to a table in place: constraints. Used by the migrations alone.

Alembic's batch mode makes the new table from what can be reflected, and so loses CHECKs and AUTOINCREMENT. Here the new
table is made from the old one's own words with some replaced, and keeps everything that is not named.
"""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op


def is_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"


def remake(table: str, *edits: tuple[str, str], values: dict[str, str] | None = None) -> None:
    """SQLite: make `table` anew with each `(before, after)` of its CREATE statement replaced; rows and indexes stay.

    An empty `before` adds a constraint at the end. `values`: SQL for what columns of the new table hold in old rows.

    Raises:
        ValueError: the statement does not hold a `before` exactly once.
    """
    connection = op.get_bind()
    (statement,) = connection.execute(
        sa.text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :table"), {"table": table}
    ).one()
    # One spelling, whoever wrote the table: SQLAlchemy leaves blanks at line ends, a table made anew has none.
    statement = re.sub(r",\s*\n\s*", ",\n\t", statement)
    indexes = connection.execute(
        sa.text("SELECT sql FROM sqlite_master WHERE type = 'index' AND tbl_name = :table AND sql IS NOT NULL"),
        {"table": table},
    ).scalars()
    before_names = [row.name for row in connection.exec_driver_sql(f'PRAGMA table_info("{table}")')]
    highest = connection.execute(
        sa.text("SELECT seq FROM sqlite_sequence WHERE name = :table"), {"table": table}
    ).scalar_one_or_none()
    for before, after in edits:
        if not before:
            statement = re.sub(r"\s*\)\s*$", lambda end: f",\n\t{after}\n)", statement)  # noqa: B023 - used at once
        elif statement.count(before) != 1:
            raise ValueError(f"{table}: {before!r} is there {statement.count(before)} times")
        else:
            statement = statement.replace(before, after)
    draft = f"_new_{table}"
    new, count = re.subn(rf'^CREATE TABLE "?{table}"?', f'CREATE TABLE "{draft}"', statement)
    if count != 1:
        raise ValueError(f"{table}: an unknown CREATE statement")
    index_statements = list(indexes)
    connection.exec_driver_sql(new)
    after_names = {row.name for row in connection.exec_driver_sql(f'PRAGMA table_info("{draft}")')}
    taken = {name: f'"{name}"' for name in before_names if name in after_names} | (values or {})
    columns = ", ".join(f'"{name}"' for name in taken)
    connection.exec_driver_sql(f'INSERT INTO "{draft}" ({columns}) SELECT {", ".join(taken.values())} FROM "{table}"')
    connection.exec_driver_sql(f'DROP TABLE "{table}"')
    connection.exec_driver_sql(f'ALTER TABLE "{draft}" RENAME TO "{table}"')
    for index in index_statements:
        connection.exec_driver_sql(index)
    if highest is not None:
        # An id that was given out once is not given out again, even if its row is gone.
        connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :table"), {"table": table})
        connection.execute(
            sa.text("INSERT INTO sqlite_sequence (name, seq) VALUES (:table, :highest)"),
            {"table": table, "highest": highest},
        )


def change_words(table: str, column: str, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """Another list of words for a status column, on either database."""

    def check(words: tuple[str, ...]) -> str:
        return f"{column} IN ({', '.join(repr(word) for word in words)})"

    if is_sqlite():
        remake(table, (f"CHECK ({check(before)})", f"CHECK ({check(after)})"))
    else:
        op.drop_constraint(op.f(f"ck_{table}_{column}"), table, type_="check")
        op.create_check_constraint(op.f(f"ck_{table}_{column}"), table, check(after))
