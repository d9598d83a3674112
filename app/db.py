"""The database: one engine a process, the unit of work, and the only place that commits.

Routes get a session by `Depends(unit_of_work, scope="function")`, so that the commit precedes the response; the worker uses
`transaction()`. Nobody else calls commit (a test reads the source).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from app.errors import Unavailable
from app.settings import Settings

CHANNEL_JOBS = "llamaflow_jobs"
CHANNEL_DELIVERIES = "llamaflow_deliveries"


class Database:
    """A pool of connections to one Postgres.

    Args:
        url: As `Settings.sqlalchemy_url`.
        pool_size: Connections kept.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.engine: AsyncEngine = create_async_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": 5,
                "application_name": "llamaflow",
                "options": "-c timezone=UTC -c idle_in_transaction_session_timeout=60000",
            },
        )
        self.sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @classmethod
    def from_settings(cls, settings: Settings, *, pool_size: int = 10) -> Database:
        """The database the settings name."""
        return cls(settings.sqlalchemy_url, pool_size=pool_size)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed when the block ends, rolled back when it raises."""
        async with self.sessions() as session, session.begin():
            yield session

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


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
            raise Unavailable(
                "The database does not answer. Try again in a moment.", code="database_unavailable", retry_after=2
            ) from error
        raise


Session = Annotated[AsyncSession, Depends(unit_of_work, scope="function")]
