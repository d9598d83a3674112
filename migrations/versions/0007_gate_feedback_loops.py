"""verdicts of the gate, kept completions, feedback on them, and loops that train on it"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
AT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("keep_completions", sa.BigInteger(), comment="seconds; null: none are kept"))
    op.add_column("adapter_versions", sa.Column("verdict", sa.Text(), comment="of its gate; null without one"))
    op.add_column("adapter_versions", sa.Column("gate", postgresql.JSONB(), comment="steps.GateResult, and why"))
    op.create_check_constraint(
        op.f("ck_adapter_versions_verdict"), "adapter_versions", "verdict in ('promoted', 'not_promoted')"
    )
    op.create_table(
        "completions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False, comment="as it was asked for"),
        sa.Column("served", sa.Text(), nullable=True, comment="the ft: id that answered; null for a base"),
        sa.Column("messages", postgresql.JSON(), nullable=False),
        sa.Column("answers", postgresql.JSON(), nullable=False, comment="a text for each choice"),
        sa.Column("created_at", AT, server_default=NOW, nullable=False),
        sa.Column("expires_at", AT, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_completions_project_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_completions_api_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_completions")),
    )
    op.create_index(op.f("ix_completions_expires_at"), "completions", ["expires_at"])
    op.create_table(
        "feedback",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("completion_id", sa.Text(), nullable=False),
        sa.Column("choice", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=True, comment="the name of the version that answered"),
        sa.Column("version", sa.BigInteger(), nullable=True),
        sa.Column("rating", sa.Text(), nullable=False),
        sa.Column("correction", sa.Text(), nullable=True),
        sa.Column("comment", sa.Text(), server_default="", nullable=False),
        sa.Column("messages", postgresql.JSON(), nullable=False, comment="what was asked"),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("created_at", AT, server_default=NOW, nullable=False),
        sa.Column("updated_at", AT, server_default=NOW, nullable=False),
        sa.CheckConstraint("rating in ('good', 'bad')", name=op.f("ck_feedback_rating")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_feedback_project_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_feedback_api_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_feedback")),
        sa.UniqueConstraint(
            "project_id", "completion_id", "choice", name=op.f("uq_feedback_project_id_completion_id_choice")
        ),
    )
    op.create_index("ix_feedback_adapter", "feedback", ["project_id", "adapter", "updated_at"])
    op.create_table(
        "loops",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False, comment="its name"),
        sa.Column("every_seconds", sa.BigInteger(), nullable=True),
        sa.Column("min_new_examples", sa.BigInteger(), nullable=False),
        sa.Column("gate", postgresql.JSONB(), nullable=False, comment="config.Gate"),
        sa.Column("rounds", sa.BigInteger(), server_default="0", nullable=False, comment="begun"),
        sa.Column("next_look_at", AT, server_default=NOW, nullable=False),
        sa.Column("considered_until", AT, nullable=True, comment="feedback up to then was in the last round"),
        sa.Column("waits_for", sa.Text(), nullable=True, comment="why no round began when it was looked at last"),
        sa.Column("paused_at", AT, nullable=True),
        sa.Column("paused_reason", sa.Text(), nullable=True),
        sa.Column("created_at", AT, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_loops_project_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_loops_api_key_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_loops")),
        sa.UniqueConstraint("project_id", "adapter", name=op.f("uq_loops_project_id_adapter")),
    )
    op.create_table(
        "loop_rounds",
        sa.Column("loop_id", sa.Text(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("training_file", sa.Text(), nullable=False),
        sa.Column("counts", postgresql.JSONB(), nullable=False, comment="examples: new, old, replaced, left out"),
        sa.Column("created_at", AT, server_default=NOW, nullable=False),
        sa.ForeignKeyConstraint(["loop_id"], ["loops.id"], name=op.f("fk_loop_rounds_loop_id"), ondelete="cascade"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_loop_rounds_job_id")),
        sa.PrimaryKeyConstraint("loop_id", "number", name=op.f("pk_loop_rounds")),
    )


def downgrade() -> None:
    for table in ("loop_rounds", "loops", "feedback", "completions"):
        op.drop_table(table)
    op.drop_constraint(op.f("ck_adapter_versions_verdict"), "adapter_versions")
    op.drop_column("adapter_versions", "gate")
    op.drop_column("adapter_versions", "verdict")
    op.drop_column("api_keys", "keep_completions")
