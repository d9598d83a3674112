"""`python -m app.embedded.prepare`: before the API starts, bring the database to the newest schema, with the key and secret of the state folder.

A short process of its own, so that the supervisor stays small.
"""

from __future__ import annotations

import asyncio
import sys

import migrations
from app.auth import bootstrap, new_key
from app.db import Database
from app.embedded import folder
from app.settings import Settings, get_settings
from app.webhooks.signing import new_webhook_secret


async def _bootstrap(settings: Settings, api_key: str, webhook_secret: str) -> None:
    database = Database.from_settings(settings, pool_size=1)
    try:
        async with database.transaction() as db:
            await bootstrap(db, api_key=api_key, webhook_secret=webhook_secret)
    finally:
        await database.close()


def main() -> int:
    """Make the files that are missing, migrate, make the default project know them."""
    settings = get_settings()
    state = folder.prepare(settings.state_dir)
    api_key = folder.keep(state / "api_key", new_key)
    webhook_secret = folder.keep(state / "webhook_secret", new_webhook_secret)
    migrations.upgrade(settings.sqlalchemy_url)
    asyncio.run(_bootstrap(settings, api_key, webhook_secret))
    return 0


if __name__ == "__main__":
    sys.exit(main())
