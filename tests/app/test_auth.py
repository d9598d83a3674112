"""Keys and secrets: only hashes are kept, and the first project is made once, however often the service starts."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from sqlalchemy import func, select, text

from app.auth import bootstrap, find, key_hash, new_key
from app.db import Database
from app.errors import Unauthenticated
from app.models import ApiKey, Project, SigningSecret

pytestmark = pytest.mark.db


async def boot(db: Database, key: str, secret: str) -> str:
    async with db.transaction() as session:
        return (await bootstrap(session, api_key=key, webhook_secret=secret)).id


async def works(db: Database, key: str) -> bool:
    try:
        return (await find(db, key)).project_name == "default"
    except Unauthenticated:
        return False


async def secrets_of(db: Database, project: str) -> dict[str, bool]:
    """Signing secret → whether it has no end."""
    async with db.transaction() as session:
        rows = (await session.execute(select(SigningSecret).where(SigningSecret.project_id == project))).scalars()
        return {row.secret: row.expires_at is None for row in rows}


async def test_the_first_project_is_made_once_by_all_who_start_at_once(db: Database) -> None:
    key = new_key()
    projects = await asyncio.gather(*(boot(db, key, "whsec_first") for _ in range(5)))
    assert len(set(projects)) == 1
    assert await works(db, key)
    assert await secrets_of(db, projects[0]) == {"whsec_first": True}
    async with db.transaction() as session:
        keys = (await session.execute(select(ApiKey.hash).where(ApiKey.project_id == projects[0]))).scalars().all()
        count = select(func.count()).select_from(Project).where(Project.name == "default")
        assert (list(keys), (await session.execute(count)).scalar_one()) == ([key_hash(key)], 1)


async def test_a_new_key_takes_the_place_of_the_old_one_and_an_old_secret_stays_valid_for_a_day(db: Database) -> None:
    old, new = new_key(), new_key()
    await boot(db, old, "whsec_old")
    project = await boot(db, new, "whsec_new")
    assert (await works(db, old), await works(db, new)) == (False, True)
    found = await secrets_of(db, project)
    assert (found["whsec_old"], found["whsec_new"]) == (False, True)
    async with db.transaction() as session:
        left = text("select expires_at - clock_timestamp() from signing_secrets where secret = 'whsec_old'")
        assert timedelta(hours=23) < (await session.execute(left)).scalar_one() <= timedelta(hours=24)


async def test_a_key_that_comes_back_works_again(db: Database) -> None:
    first, second = new_key(), new_key()
    for key in (first, second, first):
        await boot(db, key, "whsec_same")
    assert (await works(db, first), await works(db, second)) == (True, False)
