"""`llamaflow worker`: claims jobs, runs their pipelines, settles them, delivers callbacks, cleans up.

TERM lets go: runs go on, and another worker (or the next start) adopts them. INT, as from `llamaflow up`, ends the runs at a
checkpoint; their jobs stay running, and the next start resumes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import structlog

from app import telemetry
from app.db import CHANNEL_DELIVERIES, CHANNEL_JOBS, Database
from app.listen import listen
from app.nextflow import process
from app.settings import Settings, get_settings
from app.worker import capacity, presence, unfit
from app.worker.context import Context
from app.worker.deliveries import Deliveries
from app.worker.housekeeping import keep_house
from app.worker.loops import go_round
from app.worker.outage import insist
from app.worker.pool import Pool
from app.worker.run import HALT_SECONDS

LEAVE_SECONDS = 10.0
INSTALL_RETRY_SECONDS = 30.0
THREADS = 64

log = structlog.get_logger("worker")


class Stop:
    """Asked from outside: `leave` (runs go on) or `halt` (runs end at a checkpoint)."""

    def __init__(self) -> None:
        self.halt = False
        self._asked = asyncio.Event()

    def ask(self, *, halt: bool) -> None:
        """Ask the worker to end."""
        self.halt = self.halt or halt
        self._asked.set()

    async def wait(self) -> None:
        """Wait until it is asked."""
        await self._asked.wait()


async def run_worker(settings: Settings, stop: Stop | None = None) -> None:
    """Work until asked to stop.

    Args:
        settings: The database, S3, folders and slots.
        stop: Who may ask; None for the process's signals.
    """
    stop = stop or _on_signals()
    database = Database.from_settings(settings)
    context = Context(settings, database, presence.myself(settings))
    try:
        await _work(context, stop)
    finally:
        await database.close()


async def _work(context: Context, stop: Stop) -> None:
    await insist(lambda: _register(context))
    log.info("started", worker=context.me.id, host=context.me.host, slots=context.me.capacity.slots)
    pool, deliveries = Pool(context), Deliveries(context)
    notices = {CHANNEL_JOBS: pool.notice, CHANNEL_DELIVERIES: lambda _id: deliveries.wake.set()}
    beat = asyncio.create_task(pool.beat_for_ever())
    loops = [
        asyncio.create_task(pool.claim_for_ever()),
        asyncio.create_task(deliveries.deliver_for_ever()),
        asyncio.create_task(listen(context.settings, notices)),
        asyncio.create_task(keep_house(context)),
        asyncio.create_task(go_round(context)),
        asyncio.create_task(unfit.tell_for_ever(context)),
        asyncio.create_task(_install(context.settings, pool)),
    ]
    asked = asyncio.create_task(stop.wait())
    try:
        await _first_end(asked, beat, loops)
    finally:
        await _end(loops)
        await pool.close(halt=stop.halt, patience=HALT_SECONDS + LEAVE_SECONDS if stop.halt else LEAVE_SECONDS)
        await _end([beat, asked])
        log.info("stopped", worker=context.me.id, halted=stop.halt)


async def _first_end(asked: asyncio.Task[None], beat: asyncio.Task[None], loops: list[asyncio.Task[None]]) -> None:
    """Wait until the worker is asked to stop; a loop that ends on an error of its own ends the worker, which is started anew."""
    watched = {asked, beat, *loops}
    while asked in watched:
        done, watched = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _register(context: Context) -> None:
    async with context.database.transaction() as db:
        await presence.register(db, context.me)


async def _install(settings: Settings, pool: Pool) -> None:
    """Make sure that Nextflow is here; until then datasets are checked and callbacks delivered, but nothing is run."""
    while True:
        try:
            await asyncio.to_thread(process.nextflow, settings)
        except (RuntimeError, OSError) as problem:
            log.error("nextflow_missing", error=str(problem))
            await asyncio.sleep(INSTALL_RETRY_SECONDS)
        else:
            pool.can_run = True
            pool.wake.set()
            return


def _on_signals() -> Stop:
    stop, loop = Stop(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, lambda: stop.ask(halt=False))
    loop.add_signal_handler(signal.SIGINT, lambda: stop.ask(halt=True))
    return stop


def main() -> int:
    """Run a worker in the foreground; 0 when it was asked to stop, 2 when its settings name no database, or a profile that is none."""
    settings = get_settings()
    try:
        _ = settings.sqlalchemy_url, capacity.of(settings)
    except (RuntimeError, ValueError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    telemetry.configure(settings)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_alone(settings))
    return 0


async def _alone(settings: Settings) -> None:
    """The worker with threads enough that slow disks and checks of datasets leave some for the rest; idle ones cost nothing."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    await run_worker(settings)


if __name__ == "__main__":
    sys.exit(main())
