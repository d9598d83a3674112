"""The content-addressed cache, kept below its size: what open jobs read stays, whatever its age."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.housekeeping import folders
from app.housekeeping.house import House, counted
from app.models import FINAL, Event, Job
from finetune.download import size_text
from finetune.model import prune


async def prune_shared(house: House) -> list[str]:
    """Remove the longest unused datasets, tokens, bases and adapters while they are too large."""
    cache, settings = house.settings.cache, house.settings
    if not cache.is_dir():
        return []
    names = await asyncio.to_thread(folders.names, settings.runs)
    async with house.database.transaction() as db:
        over, kept = await _over(db, names), await _revisions(db)

    def work() -> list[prune.Thing]:
        def living(link: Path) -> bool:
            return not any(parent.name in over for parent in link.parents if parent.parent == settings.runs)

        made = prune.prune(cache, prune.SHARED, settings.cache_bytes, living=living, kept=kept, dry_run=house.dry_run)
        return made + prune.prune(cache, ("adapters",), settings.adapter_cache_bytes, dry_run=house.dry_run)

    gone = await asyncio.to_thread(work)
    if not gone:
        return []
    what = (
        f"{counted(len(gone), 'thing')} of the cache ({size_text(sum(thing.size for thing in gone))}), longest unused"
    )
    return [house.did(f"Removed {what}.", f"remove {what}.")]


async def _over(db: AsyncSession, names: list[str]) -> set[str]:
    """Jobs with a folder here that have ended: their links lead nobody to a base any more."""
    return set((await db.execute(select(Job.id).where(Job.id.in_(names), Job.status.in_(FINAL)))).scalars())


async def _revisions(db: AsyncSession) -> frozenset[str]:
    """The bases that open jobs have fetched, wherever they run."""
    told = Event.data["revision"].astext
    query = select(told).distinct().join(Job, Job.id == Event.job_id)
    rows = await db.execute(query.where(Job.status.not_in(FINAL), told.is_not(None)))
    return frozenset(rows.scalars())
