"""Alembic's entry: runs the migrations on the app's own engine."""

from __future__ import annotations

from alembic import context
from flask import current_app
from sqlalchemy.engine import Connection

target_metadata = current_app.extensions["migrate"].db.metadatas[None]
configure_args = current_app.extensions["migrate"].configure_args


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=target_metadata, transactional_ddl=True, **configure_args)
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # It may take as long as it takes. LOCAL: the connection goes back to the pool that serves requests.
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
        context.run_migrations()
        if connection.dialect.name == "sqlite":
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
            if broken:
                raise RuntimeError(f"the migration would leave {len(broken)} rows without the row they refer to")


engine = current_app.extensions["migrate"].db.engine
with engine.connect() as connection:
    if engine.dialect.name == "sqlite":
        # Recreating a table with foreign keys on empties its ON DELETE CASCADE children without a word. Off on the
        # driver's own connection: through SQLAlchemy the pragma would begin a transaction, in which it does nothing.
        driver = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys=OFF")
        try:
            run(connection)
        finally:
            driver.execute("PRAGMA foreign_keys=ON")
    else:
        run(connection)
    connection.commit()
