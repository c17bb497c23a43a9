"""Alembic runs this file for every command that needs the database; see ../environment.py."""

from alembic import context

context.config.attributes["environment"].run()
