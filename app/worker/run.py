"""The second claim: carries one job from its launch, or from where another worker left it, to its end.

A loop of three questions: what is the job's state (adopt.py), what happens while its run goes on (here), how did the run end
(evidence.py, settle.py). A hand that is told to leave lets the run go on; one that is told to halt ends it at a checkpoint.
"""

from __future__ import annotations

import asyncio
import errno
import time
from pathlib import Path

import structlog

from app.jobs import lifecycle
from app.models import Job, Run
from app.nextflow import process
from app.nextflow.process import ExitRecord
from app.nextflow.progress import FINE_TUNE, Cursor
from app.worker import adopt, record, remote, settle, wishes
from app.worker import folder as folders
from app.worker.adopt import Cancel, Follow, Launch, Pause
from app.worker.context import Context, Hand
from app.worker.evidence import PAUSED, judge
from app.worker.folder import JobFolder
from app.worker.launch import label, launch, started
from app.worker.outage import insist
from app.worker.wishes import Wishes
from finetune.exit_codes import StepError

TICK_SECONDS = 0.25
STOP_GRACE_SECONDS = 10.0
SAVE_SECONDS = 40.0
"""What a training gets to end its step and save, before it is ended by signals."""

ELSEWHERE_SECONDS = 45.0
"""What a Nextflow of a machine that does not answer gets to end, before it counts as dead with it."""

HALT_SECONDS = SAVE_SECONDS + 2 * STOP_GRACE_SECONDS
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
LOST = "The pipeline was lost; it is started again from what it had done."

log = structlog.get_logger("worker.run")


async def carry(context: Context, hand: Hand) -> None:
    """Carry a claimed job to its end, or until the hand must let go.

    Raises:
        FenceLost: Somebody else owns the job now.
    """
    try:
        while not (hand.leave or hand.halt):
            situation = await adopt.assess(context, hand)
            if situation is None:
                return
            if isinstance(situation, Cancel):
                await _cancel(context, hand, situation)
            elif isinstance(situation, Pause):
                await settle.pause(context, hand, None)
            elif isinstance(situation, Launch):
                await _launch(context, hand, situation)
            else:
                await _follow(context, hand, situation)
    except settle.Interrupted:
        return


async def _launch(context: Context, hand: Hand, situation: Launch) -> None:
    try:
        run = await launch(context, hand, situation.job, situation.previous)
    except OSError as problem:
        name = "disk_full" if problem.errno in FULL else "internal_error"
        error = StepError(name, f"The run could not be started: {problem}.").as_error()
        await settle.fail(context, hand, None, error)
        return
    log.info("launched", job=hand.job_id, run=run.id, attempt=run.attempt, pid=run.pid)


async def _cancel(context: Context, hand: Hand, situation: Cancel) -> None:
    """Nothing of the job may run when it is called cancelled."""
    if situation.run is not None:
        await asyncio.to_thread(adopt.was_started, situation.run)  # if not, it never will be
        await _end_elsewhere(context, situation.run)
        await stop(context, hand, situation.run, STOP_GRACE_SECONDS)
    await settle.cancel(context, hand, situation.job, situation.run)
    log.info("cancelled", job=hand.job_id)


async def _follow(context: Context, hand: Hand, situation: Follow) -> None:
    """Follow a run to its end, or to a reason to look again; then settle what there is to settle."""
    run = situation.run
    if run.pid is None:  # whoever launched it died before writing it down
        await insist(lambda: started(context, hand, run, process.handle(Path(run.folder))))
    while not hand.leave:
        await _look(context, hand, run)
        if hand.halt:
            await _halt(context, hand, run)
            return
        wished = await insist(lambda: wishes.of(context, hand, run))
        if wished.cancel:
            return
        if await _is_over(context, hand, run):
            await _look(context, hand, run, over=True)
            await _settle(context, hand, situation.job, run)
            return
        await obey(context, hand, run, wished)
        await hand.rest(TICK_SECONDS)


async def _look(context: Context, hand: Hand, run: Run, *, over: bool = False) -> None:
    """Record what is new of a run, after bringing what has to be brought."""
    folder = folders.of(context.settings, hand.job_id)
    await remote.exchange(context, folder, run)
    await record.catch_up(context.database, context.settings, folder, run, hand.fence, over=over)


async def obey(context: Context, hand: Hand, run: Run, wished: Wishes) -> None:
    """Have a run stop that is wished to: a training saves first, as long as it may take; anything else is ended at once."""
    folder = folders.of(context.settings, hand.job_id)
    asked = await asyncio.to_thread(folders.is_asked, folder)
    if not wished.stop:
        if asked:
            await asyncio.to_thread(folders.unask, folder)
    elif not _is_training(run) or wished.late or not (asked or await _ask(folder)):
        await stop(context, hand, run, 2 * STOP_GRACE_SECONDS)


async def _ask(folder: JobFolder) -> bool:
    """Ask the training to save and end; False if the wish cannot be left, as on a full disk."""
    try:
        await asyncio.to_thread(folders.ask_trainer, folder, "pause")
    except OSError as problem:
        log.warning("not_asked", folder=str(folder.root), error=str(problem))
        return False
    return True


def _is_training(run: Run) -> bool:
    return FINE_TUNE in Cursor(**run.cursor).running.values()


async def _is_over(context: Context, hand: Hand, run: Run) -> bool:
    """Whether nothing of a run lives any more. A task that outlived its Nextflow is waited for: it may be the training."""
    handle = process.handle(Path(run.folder))
    if handle is not None and process.is_alive(handle, context.me.here):
        return False
    if await _end_elsewhere(context, run):
        return True
    if process.head(Path(run.folder)) is not None:  # its shim was killed: nobody would write down how it ends
        await asyncio.to_thread(process.stop_head, Path(run.folder), STOP_GRACE_SECONDS)
    return not await asyncio.to_thread(process.members, label(hand.job_id))


async def _end_elsewhere(context: Context, run: Run) -> bool:
    """End a run that this worker cannot see; False if it can.

    Its worker's lease has long run out, but it need not know: where both share the disk it is told by that. After a restart of
    this machine there is nobody to tell.
    """
    handle, me = process.handle(Path(run.folder)), context.me
    if handle is None or process.is_reachable(handle, me.here):
        return False
    if run.host != me.host or handle.boot_id == me.here.boot_id:
        await asyncio.to_thread(process.end_elsewhere, Path(run.folder), ELSEWHERE_SECONDS)
    return True


async def _settle(context: Context, hand: Hand, job: Job, run: Run) -> None:
    ended = process.exit_record(Path(run.folder))
    verdict = await asyncio.to_thread(judge, Path(run.folder), ended)
    log.info("run_ended", job=hand.job_id, run=run.id, outcome=verdict.outcome, error=verdict.error)
    wished = await insist(lambda: wishes.of(context, hand, run))
    stopped = verdict.error is None or (wished.stop and (ended is None or ended.asked))
    if verdict.outcome == "succeeded" and ended is not None:
        await settle.succeed(context, hand, job, run, ended)
    elif not stopped and verdict.error is not None:
        await settle.fail(context, hand, run, verdict.error, ended)
    elif wished.pause:
        await settle.pause(context, hand, run, ended)
    elif wished.overtime:
        await settle.fail(context, hand, run, await _overtime(context, hand), ended)
    else:
        await settle.close_run(context, hand, run, ended, None if verdict == PAUSED else LOST)


async def _overtime(context: Context, hand: Hand) -> dict[str, str | None]:
    """The error of a job whose training was ended for having run too long."""

    async def once() -> Job:
        async with context.database.transaction() as db:
            return await lifecycle.lock(db, hand.job_id, fence=hand.fence)

    return wishes.max_runtime_exceeded(await insist(once))


async def _halt(context: Context, hand: Hand, run: Run) -> None:
    """End a run at a checkpoint; its job stays running, and its next run goes on from there."""
    folder = folders.of(context.settings, hand.job_id)
    if _is_training(run):
        await _save(context, hand, run, folder)
    await stop(context, hand, run, 2 * STOP_GRACE_SECONDS)
    await _look(context, hand, run, over=True)
    ended: ExitRecord | None = process.exit_record(Path(run.folder))
    if ended is not None and ended.status == 0:
        return  # it had just ended by itself: whoever claims the job next settles it
    await settle.close_run(context, hand, run, ended, None)
    log.info("halted", job=hand.job_id, run=run.id)


async def _save(context: Context, hand: Hand, run: Run, folder: JobFolder) -> None:
    """Ask the training to save and end, and wait for it.

    By its control file and not by a signal: Nextflow passes a signal on to everything a task consists of, also to what reads
    the trainer's output, and a trainer that cannot print any more does not get to save.
    """
    await asyncio.to_thread(folders.ask_trainer, folder, "pause")
    await remote.exchange(context, folder, run)
    deadline = time.monotonic() + SAVE_SECONDS
    while time.monotonic() < deadline and not await _is_over(context, hand, run):
        await hand.rest(TICK_SECONDS)


async def stop(context: Context, hand: Hand, run: Run, grace: float) -> None:
    """End whatever runs of a job on this machine.

    Nextflow is asked, asks its tasks, and goes; a task may take longer, to save. What is left after `grace` seconds is killed.
    """
    deadline = time.monotonic() + grace
    handle = process.handle(Path(run.folder))
    if handle is not None:
        await asyncio.to_thread(process.stop, handle, context.me.here, grace / 2)
    left = max(0.0, deadline - time.monotonic())
    if not await asyncio.to_thread(process.wait_members, label(hand.job_id), left):
        await asyncio.to_thread(process.reap, label(hand.job_id), 0)
