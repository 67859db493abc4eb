"""Nothing goes unheard: destinations with retries, what came of each, alerts that are told once, maintenance

Revision: 0004
Follows: 0003
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.schema import CreateColumn

import columns
from migrations.remake import change_words, is_sqlite, remake

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UNSENT = sa.text("status IN ('pending', 'sending')")
CHANNELS = ("email", "webhook")
IS_DIGEST = "CHECK (digest IN ('off', 'hourly', 'daily'))"
IS_INTERVAL = "CHECK (maintenance_every_hours >= 1 AND maintenance_every_hours <= 100000)"

# Each with what it holds in the rows of before.
ADDED: dict[str, list[tuple[sa.Column, str]]] = {
    "deliveries": [
        (sa.Column("destination", sa.String(length=64), nullable=False), "channel"),
        (sa.Column("channel_id", sa.Integer(), nullable=True), "NULL"),
        (sa.Column("is_urgent", sa.Boolean(), nullable=False), "false"),
        (sa.Column("tries", sa.Integer(), nullable=False), "attempts"),
        (sa.Column("next_try_at", columns.UtcDateTime(), nullable=False), "created_at"),
        (sa.Column("claimed_by", sa.String(length=64), nullable=True), "NULL"),
        (sa.Column("folded_into_id", sa.Integer(), nullable=True), "NULL"),
    ],
    "print_notifications": [
        (sa.Column("notify_printer_offline", sa.Boolean(), nullable=False), "true"),
        (sa.Column("notify_printer_fault", sa.Boolean(), nullable=False), "true"),
        (sa.Column("notify_needs_person", sa.Boolean(), nullable=False), "true"),
        (sa.Column("quiet_from", sa.String(length=5), nullable=True), "NULL"),
        (sa.Column("quiet_to", sa.String(length=5), nullable=True), "NULL"),
        (sa.Column("digest", sa.String(length=32), nullable=False), "'off'"),
        (sa.Column("digest_at", sa.String(length=5), nullable=False), "'08:00'"),
        (sa.Column("webhook_old_secret_sealed", sa.Text(), nullable=True), "NULL"),
        (sa.Column("webhook_old_secret_until", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("webhook_failing_since", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("webhook_disabled_at", columns.UtcDateTime(), nullable=True), "NULL"),
        (sa.Column("webhook_disabled_reason", sa.Text(), nullable=True), "NULL"),
    ],
    "printers": [
        (sa.Column("maintenance_every_hours", sa.Integer(), nullable=True), "250"),
        (sa.Column("hours_since_maintenance", columns.Scaled(2), nullable=False), "0"),
        (sa.Column("maintenance_done_at", columns.UtcDateTime(), nullable=True), "NULL"),
    ],
}
CONSTRAINTS = {
    "deliveries": [
        "CONSTRAINT uq_deliveries_user_id_id UNIQUE (user_id, id)",
        "CONSTRAINT uq_deliveries_event_id_destination UNIQUE (event_id, destination)",
        "CONSTRAINT fk_deliveries_user_id_channel_id FOREIGN KEY(user_id, channel_id)"
        " REFERENCES notification_channels (user_id, id)",
        "CONSTRAINT fk_deliveries_user_id_folded_into_id FOREIGN KEY(user_id, folded_into_id)"
        " REFERENCES deliveries (user_id, id)",
    ],
    "print_notifications": [f"CONSTRAINT ck_print_notifications_digest {IS_DIGEST}"],
    "printers": [f"CONSTRAINT ck_printers_maintenance_every_hours_range {IS_INTERVAL}"],
}
ONE_A_CHANNEL = "CONSTRAINT uq_deliveries_event_id_channel UNIQUE (event_id, channel)"
FIRST_COLUMN = "\n\tuser_id INTEGER NOT NULL,"


def upgrade() -> None:
    op.create_table(
        "notification_channels",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("printer_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("service", sa.String(length=64), nullable=False),
        sa.Column("url_sealed", sa.Text(), nullable=False),
        sa.Column("is_enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id", "printer_id"],
            ["printers.user_id", "printers.id"],
            name=op.f("fk_notification_channels_user_id_printer_id"),
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_notification_channels_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_notification_channels")),
        sa.UniqueConstraint("user_id", "id", name=op.f("uq_notification_channels_user_id_id")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_notification_channels_printer_id", "notification_channels", ["printer_id"])
    op.create_table(
        "printer_alerts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("printer_id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("raised_at", columns.UtcDateTime(), nullable=False),
        sa.Column("cleared_at", columns.UtcDateTime(), nullable=True),
        sa.Column("told_at", columns.UtcDateTime(), nullable=True),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id", "printer_id"],
            ["printers.user_id", "printers.id"],
            name=op.f("fk_printer_alerts_user_id_printer_id"),
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_printer_alerts_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_printer_alerts")),
        sa.UniqueConstraint("printer_id", "key", name=op.f("uq_printer_alerts_printer_id_key")),
        sqlite_autoincrement=True,
    )
    op.drop_index("ix_deliveries_status", "deliveries")
    change_words("deliveries", "channel", CHANNELS, (*CHANNELS, "apprise"))
    if is_sqlite():
        for table, added in ADDED.items():
            words = "".join(f"\n\t{_words(column)}," for column, _ in added)
            ends = [("", constraint) for constraint in CONSTRAINTS[table]]
            if table == "deliveries":
                ends.append((f",\n\t{ONE_A_CHANNEL}", ""))
            values = {column.name: value for column, value in added}
            remake(table, (FIRST_COLUMN, FIRST_COLUMN + words), *ends, values=values)
    else:
        for table, added in ADDED.items():
            for column, value in added:
                op.add_column(table, sa.Column(column.name, column.type, nullable=True))
                op.execute(f"UPDATE {table} SET {column.name} = {value}")
                if not column.nullable:
                    op.alter_column(table, column.name, nullable=False)
        op.execute("ALTER TABLE deliveries DROP CONSTRAINT uq_deliveries_event_id_channel")
        for table, constraints in CONSTRAINTS.items():
            for constraint in constraints:
                op.execute(f"ALTER TABLE {table} ADD {constraint}")
    op.create_index("ix_deliveries_printer_id", "deliveries", ["printer_id", "id"])
    op.create_index("ix_deliveries_folded_into_id", "deliveries", ["folded_into_id"])
    for name, indexed in (
        ("ix_deliveries_stream", ["printer_id", "destination", "id"]),
        ("ix_deliveries_due", ["next_try_at"]),
    ):
        op.create_index(name, "deliveries", indexed, sqlite_where=UNSENT, postgresql_where=UNSENT)
    op.create_table(
        "delivery_attempts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("delivery_id", sa.Integer(), nullable=False),
        sa.Column("at", columns.UtcDateTime(), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("is_ok", sa.Boolean(), nullable=False),
        sa.Column("answer_code", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["user_id", "delivery_id"],
            ["deliveries.user_id", "deliveries.id"],
            name=op.f("fk_delivery_attempts_user_id_delivery_id"),
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_delivery_attempts_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery_attempts")),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_delivery_attempts_delivery_id", "delivery_attempts", ["delivery_id", "id"])


def _words(column: sa.Column) -> str:
    return str(CreateColumn(column).compile(dialect=op.get_bind().dialect)).strip()


def downgrade() -> None:
    op.drop_table("delivery_attempts")
    for name in ("stream", "due", "printer_id", "folded_into_id"):
        op.drop_index(f"ix_deliveries_{name}", "deliveries")
    op.execute("DELETE FROM deliveries WHERE channel = 'apprise'")
    if is_sqlite():
        for table, added in ADDED.items():
            ends = [(f",\n\t{constraint}", "") for constraint in CONSTRAINTS[table]]
            if table == "deliveries":
                ends.append(("", ONE_A_CHANNEL))
            remake(table, *((f"\n\t{_words(column)},", "") for column, _ in added), *ends)
    else:
        for table, constraints in CONSTRAINTS.items():
            for constraint in reversed(constraints):
                op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint.split()[1]}")
        for table, added in ADDED.items():
            for column, _ in added:
                op.drop_column(table, column.name)
        op.execute(f"ALTER TABLE deliveries ADD {ONE_A_CHANNEL}")
    change_words("deliveries", "channel", (*CHANNELS, "apprise"), CHANNELS)
    op.create_index("ix_deliveries_status", "deliveries", ["status", "id"])
    op.drop_table("printer_alerts")
    op.drop_table("notification_channels")
