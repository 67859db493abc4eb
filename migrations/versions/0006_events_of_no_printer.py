"""Events and deliveries of no printer: a shop's login that Etsy takes no more

Revision: 0006
Follows: 0005
"""

from alembic import op

from migrations.remake import is_sqlite, remake

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = ("print_events", "deliveries")


def upgrade() -> None:
    for table in TABLES:
        _let_printer_be_null(table, may_be=True)


def downgrade() -> None:
    # There is no place for them before.
    of_none = "SELECT id FROM deliveries WHERE printer_id IS NULL"
    op.execute(f"UPDATE deliveries SET folded_into_id = NULL WHERE folded_into_id IN ({of_none})")
    op.execute(f"DELETE FROM delivery_attempts WHERE delivery_id IN ({of_none})")
    for table in TABLES[::-1]:
        op.execute(f"DELETE FROM {table} WHERE printer_id IS NULL")
        _let_printer_be_null(table, may_be=False)


def _let_printer_be_null(table: str, *, may_be: bool) -> None:
    if not is_sqlite():
        op.alter_column(table, "printer_id", nullable=may_be)
        return
    required, optional = "\n\tprinter_id INTEGER NOT NULL,", "\n\tprinter_id INTEGER,"
    remake(table, (required, optional) if may_be else (optional, required))
