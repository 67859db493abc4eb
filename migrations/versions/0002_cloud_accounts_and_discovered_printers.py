"""Bambu Lab's cloud, discovered printers, more commands

Revision: 0002
Follows: 0001
"""

import sqlalchemy as sa
from alembic import op

import columns
from migrations.remake import change_words, is_sqlite, remake

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KINDS = ("pause", "resume", "stop", "test")
MORE_KINDS = (*KINDS, "speed", "light", "clear_error", "change_filament", "set_filament")
REFERENCE = "fk_printer_connections_user_id_cloud_account_id"
REFERENCES = f"CONSTRAINT {REFERENCE} FOREIGN KEY(user_id, cloud_account_id) REFERENCES cloud_accounts (user_id, id)"


def upgrade() -> None:
    op.create_table(
        "discovered_printers",
        sa.Column("serial_number", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=True),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("connect_mode", sa.String(length=16), nullable=True),
        sa.Column("is_bound", sa.Boolean(), nullable=True),
        sa.Column("firmware", sa.String(length=64), nullable=True),
        sa.Column("signal_dbm", sa.Integer(), nullable=True),
        sa.Column("heard_at", columns.UtcDateTime(), nullable=False),
        sa.Column("forget_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("serial_number", name=op.f("pk_discovered_printers")),
    )
    op.create_index(op.f("ix_discovered_printers_forget_at"), "discovered_printers", ["forget_at"])
    op.create_table(
        "cloud_accounts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column(
            "region",
            sa.Enum("global", "china", name="region", native_enum=False, create_constraint=True, length=32),
            nullable=False,
        ),
        sa.Column("account", sa.String(length=255), nullable=False),
        sa.Column("uid", sa.String(length=32), nullable=True),
        sa.Column(
            "state",
            sa.Enum(
                "connected",
                "code_needed",
                "totp_needed",
                "login_needed",
                name="state",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("state_reason", sa.Text(), nullable=True),
        sa.Column("token_sealed", sa.Text(), nullable=True),
        sa.Column("refresh_token_sealed", sa.Text(), nullable=True),
        sa.Column("tfa_key_sealed", sa.Text(), nullable=True),
        sa.Column("token_expires_at", columns.UtcDateTime(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_cloud_accounts_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cloud_accounts")),
        sa.UniqueConstraint("user_id", "id", name=op.f("uq_cloud_accounts_user_id_id")),
        sa.UniqueConstraint("user_id", "region", "account", name=op.f("uq_cloud_accounts_user_id_region_account")),
        sqlite_autoincrement=True,
    )
    op.add_column("printer_commands", sa.Column("arguments", sa.JSON(), nullable=True))
    change_words("printer_commands", "kind", KINDS, MORE_KINDS)
    op.add_column("printer_connections", sa.Column("cloud_account_id", sa.Integer(), nullable=True))
    op.create_index(op.f("ix_printer_connections_cloud_account_id"), "printer_connections", ["cloud_account_id"])
    if is_sqlite():
        remake("printer_connections", ("", REFERENCES))
    else:
        op.create_foreign_key(
            op.f(REFERENCE),
            "printer_connections",
            "cloud_accounts",
            ["user_id", "cloud_account_id"],
            ["user_id", "id"],
        )


def downgrade() -> None:
    if is_sqlite():
        remake("printer_connections", (f",\n\t{REFERENCES}", ""))
    else:
        op.drop_constraint(op.f(REFERENCE), "printer_connections", type_="foreignkey")
    op.drop_index(op.f("ix_printer_connections_cloud_account_id"), "printer_connections")
    op.drop_column("printer_connections", "cloud_account_id")
    # Nobody waits for a command across a change of the schema.
    op.execute("DELETE FROM printer_commands WHERE kind NOT IN ('pause', 'resume', 'stop', 'test')")
    change_words("printer_commands", "kind", MORE_KINDS, KINDS)
    op.drop_column("printer_commands", "arguments")
    op.drop_table("cloud_accounts")
    op.drop_table("discovered_printers")
