"""procrastinate on the same Postgres: jobs deferred a second, pick-up by a free worker, empty jobs a second. A yardstick, not a rival.

Needs the extra: `.tools/uv/bin/uv pip install procrastinate` (or pip's `.[benchmarks]`).
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from benchmarks.load import percentile
from benchmarks.place import Place

try:
    import procrastinate
except ImportError:  # the benchmark alone needs it
    procrastinate = None


def measure(place: Place, *, quick: bool) -> dict[str, Any]:
    """All three."""
    if procrastinate is None:
        return {"left out": "procrastinate is not installed: .tools/uv/bin/uv pip install procrastinate"}
    return asyncio.run(_measure(place, jobs=300 if quick else 2000))


async def _measure(place: Place, jobs: int) -> dict[str, Any]:
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=place.url, min_size=4, max_size=20))
    began: asyncio.Queue[float] = asyncio.Queue()

    @app.task(name="empty")
    async def empty(number: int) -> None:
        began.put_nowait(time.perf_counter())

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        start = time.perf_counter()
        await asyncio.gather(*(_defer(empty, range(first, jobs, 16)) for first in range(16)))
        deferred = jobs / (time.perf_counter() - start)
        start = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=16, install_signal_handlers=False)
        emptied = jobs / (time.perf_counter() - start)
        times = await _pick_up(app, empty, began)
    return {
        "deferred a second, 16 at once": round(deferred, 1),
        "empty jobs a second, 16 at once": round(emptied, 1),
        "from commit to start": {
            "median_ms": round(statistics.median(times) * 1000, 1), "p95_ms": round(percentile(times, 95) * 1000, 1),
        },
    }  # fmt: skip


async def _defer(task: Any, numbers: range) -> None:
    for number in numbers:
        await task.defer_async(number=number)


async def _pick_up(app: Any, task: Any, began: asyncio.Queue[float]) -> list[float]:
    """Seconds from the commit of one job to its start, the worker being free."""
    while not began.empty():
        began.get_nowait()
    worker = asyncio.create_task(app.run_worker_async(concurrency=1, install_signal_handlers=False))
    times = []
    for number in range(101):
        await task.defer_async(number=number)
        committed = time.perf_counter()
        times.append(max(0.0, await began.get() - committed))
        await asyncio.sleep(0.05)
    worker.cancel()
    await asyncio.gather(worker, return_exceptions=True)
    return sorted(times[1:])
