"""Who sends a gift, and what the seller has written to the buyer

Revision: 0007
Follows: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("orders", sa.Column("gift_sender", sa.String(length=255), nullable=True))
    op.add_column("orders", sa.Column("message_from_seller", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("orders", "message_from_seller")
    op.drop_column("orders", "gift_sender")
