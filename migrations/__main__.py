"""`python -m migrations "what changes"` writes the next migration from the difference between tables and database."""

import sys

from alembic import command

from migrations import config

command.revision(config(), message=sys.argv[1], autogenerate=True)
