"""Etsy for real: how a shop's sync stands, mappings of lines to plates, the way back, the weather's place

Revision: 0005
Follows: 0004
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import CreateColumn

import columns
from migrations.remake import is_sqlite, remake

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# Each with what it holds in the rows of before.
ADDED: dict[str, list[tuple[sa.Column, str]]] = {
    "users": [
        (sa.Column("auto_schedule", sa.Boolean(), nullable=False), "false"),
        (sa.Column("place_name", sa.String(length=255), nullable=True), "NULL"),
        (sa.Column("latitude", columns.Scaled(4), nullable=True), "NULL"),
        (sa.Column("longitude", columns.Scaled(4), nullable=True), "NULL"),
        (sa.Column("indoor_temperature_c", columns.Scaled(1), nullable=True), "NULL"),
    ],
    "shops": [
        (sa.Column("keystring", sa.String(length=255), nullable=True), "NULL"),
        (sa.Column("shared_secret_sealed", sa.Text(), nullable=True), "NULL"),
        (sa.Column("refreshing_by", sa.String(length=64), nullable=True), "NULL"),
        (sa.Column("refreshing_since", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("reconnect_needed_at", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("canceled_until", columns.UtcDateTime(), nullable=True), "synced_until"),
        (sa.Column("open_orders_read_at", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("syncing_by", sa.String(length=64), nullable=True), "NULL"),
        (sa.Column("syncing_since", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("sync_progress", sa.JSON(), nullable=True), "NULL"),
        (sa.Column("sync_ended_at", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("sync_error", sa.Text(), nullable=True), "NULL"),
        (sa.Column("parked_until", columns.UtcDateTime(), nullable=True), "NULL"),
    ],
    "orders": [
        (sa.Column("carrier_name", sa.String(length=255), nullable=True), "NULL"),
        (sa.Column("ship_sent_at", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("ship_confirmed_at", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("ship_error", sa.Text(), nullable=True), "NULL"),
        (sa.Column("attention", sa.Text(), nullable=True), "NULL"),
        (sa.Column("refunded_amount", columns.Money(), nullable=True), "NULL"),
        (sa.Column("read_at", columns.UtcDateTime(), nullable=True), "NULL"),
    ],
    "order_items": [(sa.Column("personalization_seen_at", columns.UtcDateTime(), nullable=True), "NULL")],
    "product_profiles": [
        (sa.Column("shop_id", sa.Integer(), nullable=True), "NULL"),
        (sa.Column("rules", sa.JSON(), nullable=False), "'[]'"),
        (sa.Column("more_plates", sa.JSON(), nullable=False), "'[]'"),
    ],
}
CONSTRAINTS = {
    "users": [
        "CONSTRAINT ck_users_latitude_range CHECK (latitude >= -900000 AND latitude <= 900000)",
        "CONSTRAINT ck_users_longitude_range CHECK (longitude >= -1800000 AND longitude <= 1800000)",
    ],
    "product_profiles": [
        "CONSTRAINT fk_product_profiles_user_id_shop_id FOREIGN KEY(user_id, shop_id) REFERENCES shops (user_id, id)"
    ],
}


def upgrade() -> None:
    op.create_table(
        "etsy_notices",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("shop_id", sa.Integer(), nullable=False),
        sa.Column("webhook_id", sa.String(length=255), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("etsy_order_id", sa.String(length=32), nullable=True),
        sa.Column("received_at", columns.UtcDateTime(), nullable=False),
        sa.Column("done_at", columns.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id", "shop_id"], ["shops.user_id", "shops.id"], name=op.f("fk_etsy_notices_user_id_shop_id")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_etsy_notices_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_etsy_notices")),
        sa.UniqueConstraint("webhook_id", name=op.f("uq_etsy_notices_webhook_id")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_etsy_notices_received_at", "etsy_notices", ["received_at"])
    for table, added in ADDED.items():
        constraints = CONSTRAINTS.get(table, [])
        if _is_made_anew(table):
            anchor = "\n\tcreated_at DATETIME NOT NULL,"
            words = "".join(f"\n\t{_words(column)}," for column, _ in added)
            values = {column.name: value for column, value in added}
            remake(table, (anchor, words + anchor), *(("", each) for each in constraints), values=values)
            continue
        for column, value in added:
            op.add_column(table, sa.Column(column.name, column.type, nullable=True))
            op.execute(f"UPDATE {table} SET {column.name} = {value}")
            if not column.nullable:
                op.alter_column(table, column.name, nullable=False)
        for constraint in constraints:
            op.execute(f"ALTER TABLE {table} ADD {constraint}")


def _is_made_anew(table: str) -> bool:
    """What SQLite cannot do in place."""
    return is_sqlite() and (table in CONSTRAINTS or not all(column.nullable for column, _ in ADDED[table]))


def _words(column: sa.Column) -> str:
    return str(CreateColumn(column).compile(dialect=op.get_bind().dialect)).strip()


def downgrade() -> None:
    for table, added in ADDED.items():
        constraints = CONSTRAINTS.get(table, [])
        if _is_made_anew(table):
            ends = [(f",\n\t{constraint}", "") for constraint in constraints]
            remake(table, *((f"\n\t{_words(column)},", "") for column, _ in added), *ends)
            continue
        for constraint in constraints:
            op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint.split()[1]}")
        for column, _ in added:
            op.drop_column(table, column.name)
    op.drop_table("etsy_notices")
