"""`python -m app.embedded.prepare`: before the API starts, bring the database to the newest schema, with the key and secret of the state folder.

A short process of its own, so that the supervisor stays small.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
import sys

import migrations
from app.auth import bootstrap, new_key
from app.db import Database
from app.embedded import folder
from app.settings import Settings, get_settings


def new_webhook_secret() -> str:
    """`whsec_` and base64 of 64 hex characters: text, because some receivers (n8n's Crypto node) take no other bytes."""
    return "whsec_" + base64.b64encode(secrets.token_hex(32).encode()).decode()


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
