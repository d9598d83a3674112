"""Several files of a dataset tokenised at once, each in a process of its own; what comes out is what one process makes.

The processes end with this one, however it ends: they watch a pipe whose other end only it holds.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from finetune import environment
from finetune.data.shards import Shard, Task, make
from finetune.data.tokenizer import TextTokenizer, load
from finetune.exit_codes import StepError

WORTH_BYTES = 4 << 20
"""Bytes of files for which one more process is worth its start."""


def processes(tasks: Sequence[Task], tokenizer: TextTokenizer) -> int:
    """How many processes to take: one a processor given, no more than files to tokenise, fewer where there is little to do."""
    missing = [task for task in tasks if not (task.cache / "tokens" / task.key(tokenizer)).is_dir()]
    size = sum(task.file.path.stat().st_size for task in missing)
    return max(1, min(environment.processors(), len(missing), 1 + size // WORTH_BYTES))


def gather(tasks: Sequence[Task], tokenizer: TextTokenizer, count: int) -> list[Shard]:
    """The tokens of every file, in order.

    Args:
        tasks: The files.
        tokenizer: Of their base.
        count: Processes; 1 for none but this.
    Raises:
        StepError: `out_of_memory`: a process was killed.
    """
    if count <= 1:
        return [make(task, tokenizer) for task in tasks]
    context = multiprocessing.get_context("spawn")  # a fork of a process with tokenizer threads may hang
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(watched,))
    try:
        made = pool.map(_make, tasks)
        pool.submit(int)  # the death of the process started last is seen only from the next submission on
        return list(made)
    except BrokenProcessPool:
        told = "A process that tokenises the dataset was killed, most likely for want of memory. Give the step more."
        raise StepError("out_of_memory", told) from None
    finally:
        held.close()
        pool.shutdown(cancel_futures=True)
        watched.close()


def _begin(watched: Connection) -> None:
    environment.one_tokenizer_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _end_with(watched: Connection) -> None:
    watched.poll(None)
    os._exit(1)


def _make(task: Task) -> Shard:
    return make(task, _loaded(task.base, task.template))


_loaded = functools.cache(load)
