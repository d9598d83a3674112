"""The database: one engine a process, the unit of work, and the only place that commits.

Routes get a session by `Depends(unit_of_work, scope="function")`, so that the commit precedes the response; the worker uses
`transaction()`. Nobody else calls commit (a test reads the source).
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, LiteralString, cast

import psycopg
from fastapi import Depends, Request
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, InvalidatePoolError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from app.errors import Unavailable
from app.settings import Settings

CHANNEL_JOBS = "llamaflow_jobs"
CHANNEL_DELIVERIES = "llamaflow_deliveries"
ALONE_POLL_SECONDS = 0.5
LOCK_SECONDS = 10
"""How long a statement waits for a row that another transaction holds: nobody keeps one for longer, save who hangs."""

KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 30_000}


class Database:
    """A pool of connections to one Postgres.

    Args:
        url: As `Settings.sqlalchemy_url`.
        pool_size: Connections at most; each is kept once it is open, for opening one costs more than most requests.
    """

    def __init__(self, url: str, *, pool_size: int = 20) -> None:
        self.engine: AsyncEngine = create_async_engine(
            url,
            hide_parameters=True,  # an error's text may be logged, and rows hold what users wrote
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=10,
            skip_autocommit_rollback=True,
            connect_args={
                "connect_timeout": 5,
                "application_name": "llamaflow",
                "options": f"-c timezone=UTC -c jit=off -c idle_in_transaction_session_timeout=60s -c lock_timeout={LOCK_SECONDS}s",
                **KEEPALIVE,
            },
        )
        event.listen(self.engine.sync_engine, "checkout", _check_out)
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)
        self._single = self.engine.execution_options(isolation_level="AUTOCOMMIT")

    @classmethod
    def from_settings(cls, settings: Settings, *, pool_size: int = 20) -> Database:
        """The database the settings name."""
        return cls(settings.sqlalchemy_url, pool_size=pool_size)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        async with self.sessions() as session, session.begin():
            yield session

    @asynccontextmanager
    async def alone(self, name: str, patience: float) -> AsyncIterator[bool]:
        """Hold the lock `name` while the block runs: of all processes on this database one does, and it ends with its process.

        Args:
            name: Of the lock.
            patience: Seconds to wait for another one.
        Returns:
            Whether it could be had in time.
        """
        deadline = time.monotonic() + patience
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            ours = await _ask(connection, "pg_try_advisory_lock", name)
            while not ours and time.monotonic() < deadline:
                await asyncio.sleep(ALONE_POLL_SECONDS)
                ours = await _ask(connection, "pg_try_advisory_lock", name)
            try:
                yield ours
            finally:
                if ours:
                    await _ask(connection, "pg_advisory_unlock", name)

    async def first(self, statement: LiteralString, values: dict[str, Any]) -> tuple[Any, ...] | None:
        """The first row of one statement that is its own transaction: a single round trip. Values stand as %(name)s."""
        async with self._single.connect() as connection:
            return next(iter(await _run(connection, statement, values)), None)

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


async def _ask(connection: AsyncConnection, function: str, name: str) -> bool:
    found = await connection.execute(text(f"select {function}(hashtextextended(:name, 0))"), {"name": name})
    return bool(found.scalar_one())


async def rows(db: AsyncSession, statement: LiteralString, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Run a statement as the driver takes it, in the session's transaction: for the few that every submission waits for.

    Costs a third of what a statement of SQLAlchemy does. Values stand as %(name)s; rows come as plain tuples. What the session
    has not flushed is not seen.

    Raises:
        DBAPIError: As from the session itself.
    """
    return await _run(await db.connection(), statement, values)


async def _run(connection: AsyncConnection, statement: LiteralString, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    driver = cast("psycopg.AsyncConnection[Any]", (await connection.get_raw_connection()).driver_connection)
    try:
        cursor = await driver.execute(statement, values)
        return await cursor.fetchall() if cursor.description else []
    except psycopg.Error as problem:
        lost = driver.closed
        if lost:
            await connection.invalidate(problem)
        raise DBAPIError.instance(statement, values, problem, psycopg.Error, connection_invalidated=lost) from problem


def _check_out(adapted: Any, record: Any, fairy: Any) -> None:
    """Before a connection is used again: drop it, and all as old, if the server has hung up on it.

    Asks nobody, where a ping would cost each request a round trip: a server that went has said so on the socket, and one that
    went without a word is found out by KEEPALIVE.
    """
    driver: psycopg.AsyncConnection[Any] = adapted.driver_connection
    try:
        waiting = select.poll()
        waiting.register(driver.fileno(), select.POLLIN)
        while waiting.poll(0):
            driver.pgconn.consume_input()
    except psycopg.OperationalError as gone:
        raise InvalidatePoolError from gone


def is_outage(error: BaseException) -> bool:
    """Whether the database is away (and will be back), rather than the statement wrong."""
    if isinstance(error, DBAPIError):
        return bool(error.connection_invalidated) or isinstance(error, OperationalError)
    return isinstance(error, (ConnectionError, TimeoutError))


async def unit_of_work(request: Request) -> AsyncIterator[AsyncSession]:
    """The request's transaction.

    Raises:
        Unavailable: The database does not answer.
    """
    database: Database = request.app.state.database
    try:
        async with database.transaction() as session:
            yield session
    except (DBAPIError, ConnectionError, TimeoutError) as error:
        if is_outage(error):
            raise unavailable(error) from error
        raise


def unavailable(error: BaseException) -> Unavailable:
    """What is answered for an error that `is_outage`."""
    held = isinstance(error, DBAPIError) and isinstance(error.orig, psycopg.errors.LockNotAvailable)
    message = "Something else is just being done to this." if held else "The database does not answer."
    return Unavailable(f"{message} Try again in a moment.", code="database_unavailable", retry_after=2)


Session = Annotated[AsyncSession, Depends(unit_of_work, scope="function")]
