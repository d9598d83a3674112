"""pause, retry and kept logs on jobs; run tokens and training leases; deliveries by event; a breaker a receiving host"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OPEN = "status in ('validating_files', 'queued', 'running', 'paused')"
FINAL_EVENT = (
    "job_id is not null and type in "
    "('fine_tuning.job.succeeded', 'fine_tuning.job.failed', 'fine_tuning.job.cancelled')"
)
FINAL_IS_FINAL = """
create or replace function jobs_final_is_final() returns trigger language plpgsql as $$
begin
    if old.status in ('succeeded', 'failed', 'cancelled')
        and (new.status, new.error, new.finished_at, new.fine_tuned_model)
            is distinct from (old.status, old.error, old.finished_at, old.fine_tuned_model) then
        raise exception 'job % is %: a terminal status never changes, nor does what it says', old.id, old.status
            using errcode = 'check_violation';
    end if;
    return new;
end $$;
drop trigger jobs_final_is_final on jobs;
create trigger jobs_final_is_final before update of status, error, finished_at, fine_tuned_model on jobs
    for each row execute function jobs_final_is_final();
"""
STATUS_IS_FINAL = """
create or replace function jobs_final_is_final() returns trigger language plpgsql as $$
begin
    if new.status is distinct from old.status and old.status in ('succeeded', 'failed', 'cancelled') then
        raise exception 'job % is %: a terminal status never changes', old.id, old.status using errcode = 'check_violation';
    end if;
    return new;
end $$;
drop trigger jobs_final_is_final on jobs;
create trigger jobs_final_is_final before update of status on jobs
    for each row execute function jobs_final_is_final();
"""
HOST_OF_URL = """
update webhook_deliveries set host = lower(substring(url from '^https?://([^/?#]*)'))
    || case when substring(url from '^https?://([^/?#]*)') ~ ':[0-9]+$' then ''
            when url like 'https%' then '\\:443' else '\\:80' end
"""
OLD_DELIVERY = "uq_webhook_deliveries_job_id_type_url_endpoint_id"


def _time(name: str, **given: object) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), **given)  # type: ignore[arg-type]


def _created() -> sa.Column[object]:
    return _time("created_at", server_default=sa.text("clock_timestamp()"), nullable=False)


def upgrade() -> None:
    op.execute(FINAL_IS_FINAL)
    op.add_column("jobs", _time("paused_at", nullable=True))
    op.add_column("jobs", sa.Column("retry_of", sa.Text(), nullable=True))
    op.add_column(
        "jobs",
        sa.Column("logs_uri", sa.Text(), nullable=True, comment="S3 prefix of its logs, once its folder was cleared"),
    )
    op.add_column(
        "jobs",
        sa.Column("lacks", sa.Text(), nullable=True, comment="profile or memory: what no worker had for it, once told"),
    )
    op.create_foreign_key("fk_jobs_retry_of", "jobs", "jobs", ["retry_of"], ["id"])
    op.create_check_constraint(
        op.f("ck_jobs_paused_at_is_paused"), "jobs", "(status = 'paused') = (paused_at is not null)"
    )
    op.create_index("ix_jobs_open", "jobs", ["api_key_id"], postgresql_where=sa.text(OPEN))
    op.create_index("ix_jobs_running", "jobs", ["project_id"], postgresql_where=sa.text("status = 'running'"))
    op.drop_index("ix_jobs_claimable", "jobs")
    in_line = ["project_id", sa.text("priority desc"), "created_at", "id"]
    op.create_index("ix_jobs_validating", "jobs", in_line, postgresql_where=sa.text("status = 'validating_files'"))
    op.create_index("ix_jobs_queued", "jobs", in_line, postgresql_where=sa.text("status = 'queued'"))
    op.create_index(
        "ix_jobs_held", "jobs", ["project_id", "worker_id"], postgresql_where=sa.text("worker_id is not null")
    )

    op.create_table(
        "run_tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        _created(),
        _time("expires_at", nullable=False),
        _time("revoked_at", nullable=True),
        sa.Column("intent", sa.Text(), nullable=True, comment="what the run's training is asked: pause"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_run_tokens_job_id")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_run_tokens_project_id")),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_tokens_run_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_tokens")),
        sa.UniqueConstraint("hash", name=op.f("uq_run_tokens_hash")),
    )
    op.create_index(op.f("ix_run_tokens_job_id"), "run_tokens", ["job_id"])
    op.create_table(
        "train_leases",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("train_key", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        _time("lease_until", nullable=False),
        _created(),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_train_leases_job_id")),
        sa.PrimaryKeyConstraint("job_id", "train_key", name=op.f("pk_train_leases")),
    )
    op.create_table(
        "run_lines",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), autoincrement=False, nullable=False, comment="byte of the file"),
        sa.Column("until", sa.BigInteger(), nullable=False, comment="the byte after the last"),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        _created(),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_run_lines_job_id")),
        sa.PrimaryKeyConstraint("job_id", "start", name=op.f("pk_run_lines")),
    )

    op.add_column("webhook_endpoints", _time("updated_at", server_default=sa.text("clock_timestamp()"), nullable=False))
    op.add_column("webhook_endpoints", sa.Column("disabled_reason", sa.Text(), nullable=True))
    op.add_column("webhook_endpoints", _time("deleted_at", nullable=True))
    op.create_table(
        "webhook_hosts",
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("failures", sa.BigInteger(), server_default="0", nullable=False),
        _time("open_until", nullable=True),
        _time("updated_at", server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_webhook_hosts_project_id")),
        sa.PrimaryKeyConstraint("project_id", "host", name=op.f("pk_webhook_hosts")),
    )
    op.add_column(
        "webhook_deliveries",
        sa.Column("host", sa.Text(), nullable=True, comment="host:port of the url, whose breaker it waits for"),
    )
    op.execute(HOST_OF_URL)
    op.alter_column("webhook_deliveries", "host", nullable=False)
    op.drop_index("ix_webhook_deliveries_due", "webhook_deliveries")
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["project_id", "host", "next_attempt_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.create_index(
        "ix_webhook_deliveries_project", "webhook_deliveries", ["project_id", sa.text("created_at desc"), "id"]
    )
    op.alter_column("webhook_deliveries", "job_id", nullable=True)
    op.add_column("webhook_deliveries", sa.Column("seq", sa.BigInteger(), nullable=True))
    op.drop_constraint(OLD_DELIVERY, "webhook_deliveries")
    op.create_index(
        "uq_webhook_deliveries_event",
        "webhook_deliveries",
        ["job_id", "seq", "type", "url", "endpoint_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text("job_id is not null"),
    )
    op.create_index(
        "uq_webhook_deliveries_final",
        "webhook_deliveries",
        ["job_id", "url", "endpoint_id"],
        unique=True,
        postgresql_nulls_not_distinct=True,
        postgresql_where=sa.text(FINAL_EVENT),
    )

    op.add_column(
        "adapter_versions",
        sa.Column(
            "unservable", sa.Text(), nullable=True, comment="why, once its objects were found missing or changed"
        ),
    )
    op.execute(sa.schema.CreateSequence(sa.Sequence("sweeps")))


def downgrade() -> None:
    op.execute(sa.schema.DropSequence(sa.Sequence("sweeps")))
    op.drop_column("adapter_versions", "unservable")
    op.drop_index("uq_webhook_deliveries_final", "webhook_deliveries")
    op.drop_index("uq_webhook_deliveries_event", "webhook_deliveries")
    op.execute("delete from webhook_deliveries where job_id is null")
    op.create_unique_constraint(
        OLD_DELIVERY, "webhook_deliveries", ["job_id", "type", "url", "endpoint_id"], postgresql_nulls_not_distinct=True
    )
    op.drop_column("webhook_deliveries", "seq")
    op.alter_column("webhook_deliveries", "job_id", nullable=False)
    op.drop_index("ix_webhook_deliveries_project", "webhook_deliveries")
    op.drop_index("ix_webhook_deliveries_due", "webhook_deliveries")
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["next_attempt_at"],
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.drop_column("webhook_deliveries", "host")
    op.drop_table("webhook_hosts")
    op.drop_column("webhook_endpoints", "deleted_at")
    op.drop_column("webhook_endpoints", "disabled_reason")
    op.drop_column("webhook_endpoints", "updated_at")
    op.drop_table("run_lines")
    op.drop_table("train_leases")
    op.drop_table("run_tokens")
    op.drop_index("ix_jobs_held", "jobs")
    op.drop_index("ix_jobs_queued", "jobs")
    op.drop_index("ix_jobs_validating", "jobs")
    op.create_index(
        "ix_jobs_claimable",
        "jobs",
        [sa.text("priority desc"), "created_at"],
        postgresql_where=sa.text("status in ('validating_files', 'queued', 'running')"),
    )
    op.drop_index("ix_jobs_running", "jobs")
    op.drop_index("ix_jobs_open", "jobs")
    op.drop_column("jobs", "lacks")
    op.drop_column("jobs", "logs_uri")
    op.drop_column("jobs", "retry_of")
    op.drop_column("jobs", "paused_at")
    op.execute(STATUS_IS_FINAL)
