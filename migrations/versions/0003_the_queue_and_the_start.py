"""The queue and the start: plates at the gate, batches, holds, what a start has read

Revision: 0003
Follows: 0002
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

import columns
from migrations.remake import is_sqlite, remake

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

IS_PLATE_STATE = "CHECK (plate_state IN ('unknown', 'occupied', 'clear'))"
IS_UNITS = "units >= 1 AND units <= 10000"
WAITING = sa.text("status IN ('queued', 'scheduled') AND deleted_at IS NULL")
TO_BATCH = "fk_scheduled_prints_user_id_batch_id"
REFERENCES_BATCH = f"CONSTRAINT {TO_BATCH} FOREIGN KEY(user_id, batch_id) REFERENCES print_batches (user_id, id)"
SURE_FIRST = ["clear", "unknown", "occupied"]


def upgrade() -> None:
    op.create_table(
        "print_batches",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("printer_id", sa.Integer(), nullable=False),
        sa.Column("print_file_id", sa.Integer(), nullable=True),
        sa.Column("plate", sa.Integer(), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("units_per_plate", sa.Integer(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("cancelled_at", columns.UtcDateTime(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.CheckConstraint("plate >= 1 AND plate <= 1000", name=op.f("ck_print_batches_plate_range")),
        sa.CheckConstraint("priority >= -1000 AND priority <= 1000", name=op.f("ck_print_batches_priority_range")),
        sa.CheckConstraint("quantity >= 1 AND quantity <= 10000", name=op.f("ck_print_batches_quantity_range")),
        sa.CheckConstraint(
            "units_per_plate >= 1 AND units_per_plate <= 10000", name=op.f("ck_print_batches_units_per_plate_range")
        ),
        sa.ForeignKeyConstraint(
            ["user_id", "print_file_id"],
            ["print_files.user_id", "print_files.id"],
            name=op.f("fk_print_batches_user_id_print_file_id"),
        ),
        sa.ForeignKeyConstraint(
            ["user_id", "printer_id"],
            ["printers.user_id", "printers.id"],
            name=op.f("fk_print_batches_user_id_printer_id"),
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_print_batches_user_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_print_batches")),
        sa.UniqueConstraint("user_id", "id", name=op.f("uq_print_batches_user_id_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_print_batches_print_file_id"), "print_batches", ["print_file_id"])

    op.add_column("users", sa.Column("staffed_hours", sa.JSON(), nullable=True))
    op.add_column("printer_gates", sa.Column("plate_print_id", sa.Integer(), nullable=True))
    op.add_column("printers", sa.Column("foreign_print", sa.String(length=255), nullable=True))
    op.add_column("printers", sa.Column("nozzle_diameter_mm", columns.Scaled(2), nullable=True))
    op.add_column("printers", sa.Column("queue_paused_at", columns.UtcDateTime(), nullable=True))
    op.add_column("scheduled_prints", sa.Column("batch_id", sa.Integer(), nullable=True))
    op.add_column("scheduled_prints", sa.Column("held_at", columns.UtcDateTime(), nullable=True))
    op.add_column("scheduled_prints", sa.Column("overrides", sa.JSON(), nullable=True))
    op.add_column("scheduled_prints", sa.Column("needs_look", sa.Text(), nullable=True))
    op.add_column("start_intents", sa.Column("checks", sa.JSON(), nullable=True))
    op.add_column("start_intents", sa.Column("owner", sa.String(length=64), nullable=True))
    op.add_column("start_intents", sa.Column("epoch", sa.Integer(), nullable=True))
    op.add_column("start_intents", sa.Column("report_asked_at", columns.UtcDateTime(), nullable=True))
    if is_sqlite():
        number = "INTEGER NOT NULL"
        remake(
            "printer_gates",
            ("\n\tepoch INTEGER NOT NULL,", f"\n\tepoch {number},\n\tlast_submission_id {number},"),
            ("\n\tlast_submission_id", "\n\tplate_state VARCHAR(32) NOT NULL,\n\tlast_submission_id"),
            ("", f"CONSTRAINT ck_printer_gates_plate_state {IS_PLATE_STATE}"),
            values={"plate_state": "'unknown'", "last_submission_id": "0"},
        )
        remake(
            "scheduled_prints",
            ("\n\tjob_name VARCHAR(255) NOT NULL,", f"\n\tunits {number},\n\tjob_name VARCHAR(255) NOT NULL,"),
            ("", f"CONSTRAINT ck_scheduled_prints_units_range CHECK ({IS_UNITS})"),
            ("", REFERENCES_BATCH),
            values={"units": "1"},
        )
        remake(
            "start_intents",
            (
                "\n\treason TEXT,",
                "\n\treason TEXT,\n\tis_file_on_printer BOOLEAN NOT NULL,",
            ),
            values={"is_file_on_printer": "0"},
        )
    else:
        for table, column in (
            ("printer_gates", sa.Column("plate_state", sa.String(length=32), nullable=False, server_default="unknown")),
            ("printer_gates", sa.Column("last_submission_id", sa.Integer(), nullable=False, server_default="0")),
            ("scheduled_prints", sa.Column("units", sa.Integer(), nullable=False, server_default="1")),
            ("start_intents", sa.Column("is_file_on_printer", sa.Boolean(), nullable=False, server_default="false")),
        ):
            op.add_column(table, column)
            op.alter_column(table, column.name, server_default=None)
        op.execute(f"ALTER TABLE printer_gates ADD CONSTRAINT ck_printer_gates_plate_state {IS_PLATE_STATE}")
        op.create_check_constraint(op.f("ck_scheduled_prints_units_range"), "scheduled_prints", IS_UNITS)
        op.create_foreign_key(
            op.f(TO_BATCH), "scheduled_prints", "print_batches", ["user_id", "batch_id"], ["user_id", "id"]
        )
    op.create_index("ix_scheduled_prints_batch_id", "scheduled_prints", ["batch_id"])
    op.create_index(
        "ix_scheduled_prints_waiting",
        "scheduled_prints",
        ["printer_id", "status"],
        sqlite_where=WAITING,
        postgresql_where=WAITING,
    )
    op.create_index("ix_start_intents_is_file_on_printer", "start_intents", ["is_file_on_printer"])
    move_plates_to_gates()
    if is_sqlite():
        remake(
            "printers",
            ("\n\tplate_state VARCHAR(32) NOT NULL,", ""),
            ("\n\tplate_print_id INTEGER,", ""),
            (f",\n\tCONSTRAINT ck_printers_plate_state {IS_PLATE_STATE}", ""),
        )
    else:
        op.drop_column("printers", "plate_state")
        op.drop_column("printers", "plate_print_id")
    describe_plates()


def move_plates_to_gates() -> None:
    """What lies on a machine's plate, now at its gate. Of two accounts that entered it the less sure one is right."""
    connection = op.get_bind()
    gates: dict[str, tuple[str, int | None]] = {}
    rows = connection.execute(
        sa.text(
            "SELECT serial_number, plate_state, plate_print_id FROM printers"
            " JOIN printer_connections ON printer_connections.printer_id = printers.id"
            " WHERE serial_number IS NOT NULL ORDER BY printers.id"
        )
    )
    for serial, state, print_id in rows:
        known = gates.get(serial)
        if known is None or SURE_FIRST.index(state) > SURE_FIRST.index(known[0]):
            gates[serial] = state, print_id
    last = dict(
        connection.execute(
            sa.text(
                "SELECT serial_number, max(submission_id) FROM start_intents"
                " JOIN printer_connections ON printer_connections.printer_id = start_intents.printer_id"
                " GROUP BY serial_number"
            )
        ).all()
    )
    there = set(connection.execute(sa.text("SELECT serial_number FROM printer_gates")).scalars())
    for serial, (state, print_id) in gates.items():
        what = {"serial": serial, "state": state, "print": print_id, "last": last.get(serial) or 0}
        if serial in there:
            statement = (
                "UPDATE printer_gates SET plate_state = :state, plate_print_id = :print, last_submission_id = :last"
                " WHERE serial_number = :serial"
            )
        else:
            statement = (
                "INSERT INTO printer_gates (serial_number, epoch, plate_state, plate_print_id, last_submission_id)"
                " VALUES (:serial, 0, :state, :print, :last)"
            )
        connection.execute(sa.text(statement), what)


FILES = sa.table("print_files", sa.column("id", sa.Integer), sa.column("plates", sa.JSON))


def describe_plates() -> None:
    """A plate was a number; now it is what the slicer wrote about it. Files of before are read when they are used."""
    rewrite(lambda plate: {"plate": plate} if isinstance(plate, int) else plate)


def rewrite(change: Any) -> None:
    connection = op.get_bind()
    for file_id, plates in connection.execute(sa.select(FILES.c.id, FILES.c.plates)).all():
        connection.execute(
            sa.update(FILES).where(FILES.c.id == file_id).values(plates=[change(plate) for plate in plates])
        )


def downgrade() -> None:
    rewrite(lambda plate: plate["plate"] if isinstance(plate, dict) else plate)
    if is_sqlite():
        remake(
            "printers",
            (
                "\n\tauto_start BOOLEAN NOT NULL,",
                "\n\tauto_start BOOLEAN NOT NULL,\n\tplate_state VARCHAR(32) NOT NULL,\n\tplate_print_id INTEGER,",
            ),
            ("", f"CONSTRAINT ck_printers_plate_state {IS_PLATE_STATE}"),
            values={"plate_state": "'unknown'"},
        )
    else:
        op.add_column(
            "printers", sa.Column("plate_state", sa.String(length=32), nullable=False, server_default="unknown")
        )
        op.alter_column("printers", "plate_state", server_default=None)
        op.execute(f"ALTER TABLE printers ADD CONSTRAINT ck_printers_plate_state {IS_PLATE_STATE}")
        op.add_column("printers", sa.Column("plate_print_id", sa.Integer(), nullable=True))
    for column in ("plate_state", "plate_print_id"):
        op.execute(
            f"UPDATE printers SET {column} = (SELECT printer_gates.{column} FROM printer_gates"
            " JOIN printer_connections ON printer_connections.serial_number = printer_gates.serial_number"
            " WHERE printer_connections.printer_id = printers.id)"
            " WHERE id IN (SELECT printer_id FROM printer_connections JOIN printer_gates"
            " ON printer_connections.serial_number = printer_gates.serial_number)"
        )
    op.drop_index("ix_scheduled_prints_waiting", "scheduled_prints", sqlite_where=WAITING, postgresql_where=WAITING)
    op.drop_index("ix_scheduled_prints_batch_id", "scheduled_prints")
    op.drop_index("ix_start_intents_is_file_on_printer", "start_intents")
    if is_sqlite():
        remake(
            "scheduled_prints",
            (f",\n\t{REFERENCES_BATCH}", ""),
            (f",\n\tCONSTRAINT ck_scheduled_prints_units_range CHECK ({IS_UNITS})", ""),
        )
        remake("printer_gates", (f",\n\tCONSTRAINT ck_printer_gates_plate_state {IS_PLATE_STATE}", ""))
    else:
        op.drop_constraint(op.f(TO_BATCH), "scheduled_prints", type_="foreignkey")
        op.drop_constraint(op.f("ck_scheduled_prints_units_range"), "scheduled_prints", type_="check")
        op.drop_constraint(op.f("ck_printer_gates_plate_state"), "printer_gates", type_="check")
    for table, names in {
        "users": ["staffed_hours"],
        "printers": ["nozzle_diameter_mm", "queue_paused_at", "foreign_print"],
        "printer_gates": ["plate_state", "plate_print_id", "last_submission_id"],
        "scheduled_prints": ["batch_id", "units", "held_at", "overrides", "needs_look"],
        "start_intents": ["checks", "owner", "epoch", "report_asked_at", "is_file_on_printer"],
    }.items():
        for name in names:
            op.drop_column(table, name)
    op.drop_table("print_batches")
