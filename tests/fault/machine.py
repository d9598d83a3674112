"""The whole service as a state machine: whatever a client asks and whatever dies, in any order, the audit holds at the end.

Real Postgres, S3 (both of which go and come back), API and workers; in place of Nextflow the quick launcher of head.py. What is drawn comes from a seed, when
things happen does not: a seed that failed is tried again with `make chaos SEED=…`, and need not fail again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import delete, select

from app.auth import key_hash
from app.db import Database
from app.models import FINAL, ApiKey, Event, Job, Table, Worker
from app.nextflow import process
from app.settings import Settings
from app.worker.launch import label
from tests.app.worker.receiver import Receiver
from tests.app.worker.services import BUCKET, World
from tests.fault.audit import audit
from tests.fault.servers import Servers

KEY = "lf-chaos"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WORKERS = 3
JOBS = 5
QUIET_SECONDS = 90.0
REFUSED = {
    "job_not_cancellable", "job_not_pausable", "job_not_resumable", "job_not_retryable", "idempotency_conflict",
    "database_unavailable", "s3_unavailable",
}  # fmt: skip
"""Codes with which a request may be refused here; anything else is a mistake of the service."""


@dataclass
class Surroundings:
    """What all examples share: servers, a folder, a client of the API, a receiver."""

    settings: Settings
    servers: Servers
    http: httpx.Client
    receiver: Receiver
    told: list[str] = field(default_factory=list)


class Service(RuleBasedStateMachine):
    """One example: an empty database, no worker. `around` is set by whoever runs it."""

    around: Surroundings

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.asleep: set[int] = set()
        self.jobs: list[str] = []
        self.keys: dict[str, tuple[str, str]] = {}
        self.cancelled: set[str] = set()
        self.final: dict[str, str] = {}
        self.outages: dict[str, int] = {}
        self.around.told.clear()
        self.world = self.runner.run(self._world())

    async def _world(self) -> World:
        world = World(self.around.settings, Database.from_settings(self.around.settings, pool_size=3))
        async with world.database.transaction() as db:
            for table in reversed(Table.metadata.sorted_tables):
                await db.execute(delete(table))
        project = await world.project()
        async with world.database.transaction() as db:
            db.add(ApiKey(id="key-chaos", project_id=project, hash=key_hash(KEY), scopes=["write"]))
        return world

    def _tell(self, what: str) -> None:
        """Every rule says what it does; an outage ends so many of them later."""
        for name in list(self.outages):
            self.outages[name] -= 1
            if self.outages[name] <= 0:
                self._bring(name)
        self.around.told.append(what)

    # What a client does

    @initialize(drawn=st.integers(0, 1 << 32))
    def begin(self, drawn: int) -> None:
        """There is always something to do. Of every seed the first example is the simplest one, the same for all: it is left out."""
        assume(drawn)
        self.start_worker()
        while not self._rows(Worker):
            time.sleep(0.1)
        self.submit("one", None)

    @precondition(lambda self: len(self.jobs) < JOBS)
    @rule(suffix=st.sampled_from(["one", "two"]), key=st.sampled_from([None, None, "a", "b"]))
    def submit(self, suffix: str, key: str | None) -> None:
        """A key with its body is the same job again, with another body a conflict."""
        body = {
            "model": MODEL, "training_file": f"s3://{BUCKET}/train.jsonl", "suffix": suffix,
            "callback_url": self.around.receiver.url,
        }  # fmt: skip
        self._tell(f"submit {suffix} {key}")
        answer = self._post("", body, **({"idempotency-key": key} if key else {}))
        if answer is None:
            return
        earlier = self.keys.get(key or "")
        if earlier and earlier[0] != suffix:
            assert answer.status_code == 409, answer.text
            return
        assert answer.status_code == 201, answer.text
        job_id = answer.json()["id"]
        if earlier:
            assert job_id == earlier[1]
        else:
            assert job_id not in self.jobs
            self.jobs.append(job_id)
        if key:
            self.keys[key] = (suffix, job_id)

    @rule(job=st.integers(0, JOBS), action=st.sampled_from(["cancel", "pause", "resume", "retry"]))
    def ask(self, job: int, action: str) -> None:
        """Accepted or refused with a code; an accepted cancel is kept."""
        job_id = self.jobs[job % len(self.jobs)]
        if action == "retry" and len(self.jobs) >= JOBS:
            return
        self._tell(f"{action} {job_id}")
        answer = self._post(f"/{job_id}/{action}", None)
        if answer is None or answer.status_code >= 400:
            return
        if action == "cancel":
            self.cancelled.add(job_id)
        if action == "retry":
            self.jobs.append(answer.json()["id"])

    def _post(self, path: str, body: dict[str, Any] | None, **headers: str) -> httpx.Response | None:
        """The answer; None while the database or S3 is away, when what was asked for may have happened or not."""
        answer = self.around.http.post(f"/v1/fine_tuning/jobs{path}", json=body, headers=headers)
        if answer.status_code >= 400:
            code = answer.json()["error"]["code"]
            assert code in REFUSED, answer.text
            if code.endswith("_unavailable"):
                self._learn()
                return None
        return answer

    def _learn(self) -> None:
        """After an answer that was no answer: whatever jobs there are now are known, at the latest when the database is back."""
        for row in self._rows(Job):
            if row.id not in self.jobs:
                self.jobs.append(row.id)
            if row.idempotency_key:
                self.keys[row.idempotency_key] = (str(row.suffix), row.id)
            if row.cancel_requested_at is not None:
                self.cancelled.add(row.id)

    # What happens to the machine

    @precondition(lambda self: len(self.workers) < WORKERS)
    @rule()
    def start_worker(self) -> None:
        """One more."""
        self._tell("start a worker")
        self.workers.append(self.world.worker_process())

    @precondition(lambda self: self.workers)
    @rule(number=st.integers(0, WORKERS), how=st.sampled_from([signal.SIGKILL, signal.SIGTERM]))
    def end_worker(self, number: int, how: signal.Signals) -> None:
        """Without a word, or asked to go."""
        worker = self.workers.pop(number % len(self.workers))
        self._tell(f"{how.name} to a worker")
        worker.send_signal(how)
        worker.send_signal(signal.SIGCONT)
        self.asleep.discard(worker.pid)
        worker.wait(60)

    @precondition(lambda self: self.workers)
    @rule(number=st.integers(0, WORKERS))
    def sleep_or_wake(self, number: int) -> None:
        """A worker that is stopped past its lease, and one that comes back."""
        worker = self.workers[number % len(self.workers)]
        asleep = worker.pid in self.asleep
        self._tell("SIGCONT to a worker" if asleep else "SIGSTOP to a worker")
        worker.send_signal(signal.SIGCONT if asleep else signal.SIGSTOP)
        self.asleep ^= {worker.pid}

    @rule(job=st.integers(0, JOBS), one=st.booleans())
    def kill_run(self, job: int, one: bool) -> None:
        """kill -9 of what runs of a job: all of it, or the newest process alone."""
        job_id = self.jobs[job % len(self.jobs)]
        members = process.members(label(job_id))
        self._tell(f"kill -9 of {len(members[-1:] if one else members)} processes of {job_id}")
        for member in members[-1:] if one else members:
            try:
                os.kill(member.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    @rule()
    def cut_connections(self) -> None:
        """Every connection of the service to the database."""
        self._tell("cut the connections")
        if "postgres" in self.around.servers.away:
            return
        with psycopg.connect(self.around.servers.postgres.admin_url, autocommit=True) as admin:
            admin.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
                "where usename = 'llamaflow' and pid <> pg_backend_pid()"
            )

    @rule(
        name=st.sampled_from(["postgres", "s3"]), kill=st.booleans(), rules=st.integers(0, 3), tenths=st.integers(1, 30)
    )
    def take_server(self, name: str, kill: bool, rules: int, tenths: int) -> None:
        """A server goes; it comes back after a moment, or while that much more happens."""
        self._tell(f"{'kill -9 of' if kill else 'stop'} {name}, for {tenths / 10} s and {rules} rules")
        if name in self.around.servers.away:
            return
        self.around.servers.take(name, kill=kill)
        time.sleep(tenths / 10)
        self.outages[name] = rules
        if rules == 0:
            self._bring(name)

    def _bring(self, name: str) -> None:
        self.around.servers.bring(name)
        self.outages.pop(name, None)
        if name == "postgres":
            self._learn()

    @rule(tenths=st.integers(1, 40))
    def wait(self, tenths: int) -> None:
        """Let it work."""
        self._tell(f"wait {tenths / 10} s")
        time.sleep(tenths / 10)

    # What is always true

    @invariant()
    def final_is_final(self) -> None:
        """No job leaves a final status, and none that was cancelled succeeds."""
        for row in self._rows(Job):
            assert self.final.get(row.id, row.status) == row.status
            if row.status in FINAL:
                self.final[row.id] = row.status
            assert row.id not in self.cancelled or row.status not in ("succeeded", "failed")

    @invariant()
    def events_have_no_gaps(self) -> None:
        """Events are numbered 1, 2, 3 for each job."""
        numbers: dict[str, list[int]] = {}
        for row in self._rows(Event):
            numbers.setdefault(row.job_id, []).append(row.seq)
        for found in numbers.values():
            assert sorted(found) == list(range(1, len(found) + 1))

    def _rows(self, table: type[Any]) -> list[Any]:
        """A whole table; nothing while the database is away."""

        async def read() -> list[Any]:
            async with self.world.database.transaction() as db:
                return list((await db.execute(select(table))).scalars())

        return [] if "postgres" in self.around.servers.away else self.runner.run(read())

    def teardown(self) -> None:
        """Everybody is back and wakes, a worker is there, and everything comes to rest: then the audit."""
        try:
            if not self.workers and not self.jobs:
                return
            for name in list(self.around.servers.away):
                self._bring(name)
            for worker in self.workers:
                worker.send_signal(signal.SIGCONT)
            if len(self.workers) < WORKERS:
                self.start_worker()
            ends = ("succeeded", "failed", "cancelled", "paused")
            found = self.runner.run(
                audit(
                    self.world,
                    *self.jobs,
                    receiver=self.around.receiver,
                    seconds=QUIET_SECONDS,
                    fetches=JOBS,
                    ends=ends,
                )
            )
            for job in found.values():
                assert job.status != "failed" or (job.error or {}).get("code") == "crash_loop", job.error
                assert job.id not in self.cancelled or job.status == "cancelled"
        finally:
            self._end()

    def _end(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.wait(60)
        for job_id in self.jobs:
            for member in process.members(label(job_id)):
                os.kill(member.pid, signal.SIGKILL)
        self.runner.run(self.world.database.close())
        self.runner.close()
