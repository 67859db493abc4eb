"""A printer's starts that have not ended are found among all that it ever had

Revision: 0008
Follows: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NOT_ENDED = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.create_index(
        "ix_start_intents_not_ended",
        "start_intents",
        ["printer_id"],
        sqlite_where=NOT_ENDED,
        postgresql_where=NOT_ENDED,
    )


def downgrade() -> None:
    op.drop_index("ix_start_intents_not_ended", "start_intents")
