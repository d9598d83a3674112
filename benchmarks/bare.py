"""What the submissions are compared with: a bare FastAPI route with one INSERT and its commit, on the same database and the same pool.

`python -m benchmarks.bare PORT` serves it as the API is served: uvicorn, one process, uvloop, httptools.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import text

from app.db import Database, Session
from app.models import new_id
from app.settings import get_settings

INSERT = text("insert into benchmark_bare (id, model, training_file, spec) values (:id, :model, :file, :spec)")
TABLE = """
create table if not exists benchmark_bare (
    id text primary key, model text, training_file text, spec jsonb, created_at timestamptz default clock_timestamp()
)
"""


class Submission(BaseModel):
    """The fields of a job that the benchmark sends."""

    model: str
    training_file: str
    suffix: str | None = None
    seed: int = 0
    hyperparameters: dict[str, Any] = {}
    metadata: dict[str, str] = {}


def create_app() -> FastAPI:
    """One route, one statement."""
    app = FastAPI()
    app.state.database = Database.from_settings(get_settings())

    @app.post("/jobs", status_code=201)
    async def create(body: Submission, db: Session) -> dict[str, Any]:
        made = {"id": new_id("bare-"), "model": body.model, "file": body.training_file, "spec": body.model_dump_json()}
        await db.execute(INSERT, made)
        return made

    return app


def main() -> None:
    """Serve on the port given."""
    uvicorn.run(create_app(), port=int(sys.argv[1]), access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
