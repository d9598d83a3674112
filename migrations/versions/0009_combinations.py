"""names that answer with several adapters"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "adapters",
        sa.Column(
            "combination",
            postgresql.JSONB(none_as_null=True),
            nullable=True,
            comment="adapters that the name answers with, and how; then no version is promoted",
        ),
    )


def downgrade() -> None:
    op.drop_column("adapters", "combination")
