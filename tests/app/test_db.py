"""The pool: a connection on which the server hung up is never handed out, and nobody asks the server to find that out."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.exc import DataError, OperationalError

from app.db import Database, is_outage, rows
from app.embedded.postgres import PostgresServer
from app.settings import Settings

pytestmark = pytest.mark.db


@pytest_asyncio.fixture
async def pool(api_settings: Settings) -> AsyncIterator[Database]:
    """A pool of its own, of which all connections may be cut."""
    made = Database.from_settings(api_settings, pool_size=3)
    yield made
    await made.close()


async def backend(pool: Database) -> int:
    """The server process behind a transaction of the pool."""
    async with pool.transaction() as db:
        return int((await db.execute(text("select pg_backend_pid()"))).scalar_one())


def cut(server: PostgresServer, pid: int) -> None:
    """End a server process, and wait until it is gone."""
    with psycopg.connect(server.admin_url, autocommit=True) as admin:
        assert admin.execute("select pg_terminate_backend(%s, 5000)", [pid]).fetchone() == (True,)


async def test_a_connection_that_was_cut_while_it_lay_in_the_pool_is_replaced(
    pool: Database, api_postgres: PostgresServer
) -> None:
    first = await backend(pool)
    assert await backend(pool) == first
    cut(api_postgres, first)
    assert await backend(pool) != first


async def test_a_connection_that_is_cut_in_a_transaction_is_an_outage_and_is_replaced(
    pool: Database, api_postgres: PostgresServer
) -> None:
    with pytest.raises(OperationalError) as caught:  # noqa: PT012  the cut is inside the transaction
        async with pool.transaction() as db:
            [(pid,)] = await rows(db, "select pg_backend_pid()", {})
            cut(api_postgres, pid)
            await rows(db, "select 1", {})
    assert is_outage(caught.value)
    assert await backend(pool) != pid


async def test_a_statement_of_its_own_is_committed_and_a_mistake_in_it_is_told_as_from_a_session(
    pool: Database,
) -> None:
    assert await pool.first("create table if not exists single (id int)", {}) is None
    assert await pool.first("insert into single values (%(id)s) returning id", {"id": 7}) == (7,)
    assert await pool.first("select id from single where id = %(id)s", {"id": 8}) is None
    with pytest.raises(DataError):
        await pool.first("select %(id)s::int", {"id": "x"})
    assert await pool.first("drop table single", {}) is None


async def test_what_runs_beside_the_session_is_rolled_back_with_it(pool: Database) -> None:
    await pool.first("create table if not exists beside (id int)", {})
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  what ends the transaction
        async with pool.transaction() as db:
            await rows(db, "insert into beside values (1)", {})
            raise ZeroDivisionError
    assert await pool.first("select count(*) from beside", {}) == (0,)
    await pool.first("drop table beside", {})
