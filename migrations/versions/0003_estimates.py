"""what a job was expected to take, and what trainings took"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

EXPECTED = "what was expected once PREPARE_DATA had counted; at the end what it was"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("estimate", postgresql.JSONB(), nullable=True, comment=EXPECTED))
    op.create_table(
        "measurements",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=False, comment="its id"),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("technique", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("profile", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False, comment="the GPU's name, or cpu and its threads"),
        sa.Column("tokens", sa.BigInteger(), nullable=False, comment="over all epochs, prompts included"),
        sa.Column("longest", sa.BigInteger(), nullable=False, comment="tokens of the longest example"),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("bytes_a_token", sa.Double(), nullable=True, comment="bytes of text that made one token"),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("kind in ('cpu', 'gpu')", name=op.f("ck_measurements_kind")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_measurements_job_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_measurements_project_id")),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_measurements")),
    )
    op.create_index(
        "ix_measurements_like",
        "measurements",
        ["project_id", "technique", "method", "kind", sa.text("created_at desc")],
    )


def downgrade() -> None:
    op.drop_index("ix_measurements_like", "measurements")
    op.drop_table("measurements")
    op.drop_column("jobs", "estimate")
