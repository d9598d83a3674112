"""who promoted which version of an adapter, and where imported ones came from"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

IMPORTED = "where it was brought from; then its objects are the service's own"
LAST = "the newest there had been by then: no number is given twice"

HISTORY = """
    insert into promotions (id, project_id, adapter, number, kind, from_version, to_version, last_version, job_id, created_at)
    select 'promo_' || left(md5(v.id), 24), v.project_id, a.name,
        row_number() over (partition by a.id order by v.version), 'job',
        lag(v.version) over (partition by a.id order by v.version), v.version, v.version, v.job_id, v.created_at
    from adapter_versions v join adapters a on a.id = v.adapter_id where v.version <= a.promoted_version
"""
"""Until now every version was promoted when its job ended."""


def upgrade() -> None:
    op.add_column("adapter_versions", sa.Column("imported_from", sa.Text(), nullable=True, comment=IMPORTED))
    op.create_table(
        "promotions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False, comment="its name"),
        sa.Column("number", sa.BigInteger(), nullable=False, comment="1, 2, ... of the name"),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("from_version", sa.BigInteger(), nullable=True),
        sa.Column("to_version", sa.BigInteger(), nullable=True),
        sa.Column("last_version", sa.BigInteger(), nullable=False, comment=LAST),
        sa.Column("api_key_id", sa.Text(), nullable=True),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint(
            "kind in ('job', 'import', 'request', 'rollback', 'deletion')", name=op.f("ck_promotions_kind")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_promotions_project_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_promotions_api_key_id")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_promotions_job_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotions")),
        sa.UniqueConstraint("project_id", "adapter", "number", name=op.f("uq_promotions_project_id_adapter_number")),
    )
    op.execute(HISTORY)


def downgrade() -> None:
    op.drop_table("promotions")
    op.drop_column("adapter_versions", "imported_from")
