"""Puts the service together: settings, database, bus and HTTP."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import sqlalchemy as sa
import structlog
from fastapi import Depends, FastAPI

from .base import auth, http, logs, openapi, problems
from .base.branches import Branches
from .base.dotenv import misspelt_names
from .base.errors import Unavailable
from .base.limits import BodyLimit
from .bus.engines import UNREACHABLE, Database, is_away
from .bus.operating.standing import Standing
from .bus.runtime import Runtime, build
from .bus.services import settings_classes
from .bus.texts import said
from .bus.version import service_version
from .settings import TITLE, Settings

PACKAGE = __name__.rpartition(".")[0]

log = structlog.stdlib.get_logger(__name__)


def build_runtime(settings: Settings, overrides: Mapping[type, object] | None = None) -> Runtime:
    """The bus of this service on its database. Raises WiringError if the code does not fit.

    A name in .env that is close to a setting's, and is none, is logged.
    """
    runtime = build(
        PACKAGE,
        database=Database(
            settings.database_url,
            replica=settings.database_replica_url,
            pool_size=settings.database_pool_size,
        ),
        settings=[settings],
        slices=settings.slices,
        overrides=overrides,
        relay=settings.relay,
        key_lifetime=dt.timedelta(hours=settings.idempotency_hours),
        catch_up=settings.catch_up_seconds,
    )
    modules = [module for found in runtime.catalog.modules.values() for module in found]
    known = [type(settings), *settings_classes([auth, *modules])]
    for name, meant in misspelt_names(known).items():
        log.warning("no setting has this name, which is in .env", name=name, did_you_mean=meant)
    return runtime


class StartError(Exception):
    """The service cannot start as things are; says why, and what to do."""


async def check_database(database: Database) -> None:
    """Raises StartError if the database cannot be reached or written to, or is behind the code.

    What queries are to ask instead, a replica, has to be reachable as well.
    """
    try:
        async with database.writer.connect():
            pass
        standing = await Branches(PACKAGE).compare(database)
    except UNREACHABLE as error:
        raise StartError(database.unreachable(error)) from error
    if database.has_replica:
        try:
            async with database.queries.connect():
                pass
        except UNREACHABLE as error:
            raise StartError(database.unreachable(error, replica=True)) from error
    if standing.behind:
        raise StartError(
            f"The database {database} is behind the code (it lacks"
            f" {', '.join(standing.behind)}). Run `{PACKAGE.replace('_', '-')} db upgrade` first."
        )
    if standing.newer:
        log.warning("the database is newer than the code", revisions=standing.newer)


@asynccontextmanager
async def opened(
    runtime: Runtime, *, relay: bool = True, checked: bool = False
) -> AsyncIterator[Runtime]:
    """Check the database, unless it is checked already; open the bus, deliver events meanwhile.

    Raises StartError, or what the runtime raises when it opens.
    """
    if runtime.database is None:
        raise StartError("The service needs a database.")
    try:
        if not checked:
            await check_database(runtime.database)
        async with runtime:
            delivering = asyncio.create_task(runtime.relay.run()) if relay else None
            await asyncio.sleep(0)  # The relay begins now, so that readiness can tell.
            try:
                yield runtime
            finally:
                runtime.relay.stop()
                if delivering is not None:
                    await delivering
    finally:
        await runtime.database.close()


def create_app(
    settings: Settings | None = None,
    overrides: Mapping[type, object] | None = None,
    *,
    relay: bool = True,
    checked: bool = False,
) -> FastAPI:
    """The HTTP service.

    overrides replaces services by type, in tests; without relay events are stored, not delivered.
    checked: whoever starts it checks the database, and tells what is wrong; the server cannot.
    """
    settings = settings or Settings()
    logs.configure(settings.log_level, json=settings.in_production)
    runtime = build_runtime(settings, overrides)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with opened(runtime, relay=relay, checked=checked):
            yield

    app = FastAPI(
        title=TITLE,
        version=service_version() or "unknown",
        lifespan=lifespan,
        dependencies=[Depends(openapi.json_as_documented)],
    )
    app.state.runtime = runtime
    problems.install(app)
    openapi.install(app)
    auth.install(app)
    for router in runtime.routers:
        app.include_router(router)
    _add_probes(app, runtime)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    http.install(app)
    return app


def _add_probes(app: FastAPI, runtime: Runtime) -> None:
    branches = Branches(PACKAGE)

    @app.get("/healthz", tags=["service"])
    async def healthz() -> dict[str, str]:
        return {"process": "ok"}

    @app.get("/readyz", tags=["service"])
    async def readyz() -> dict[str, object]:
        deliveries: dict[str, object] = {}
        checks = {"database": "ok", "relay": "ok" if runtime.relay.alive else "not running"}
        try:
            if runtime.database:
                if (await branches.compare(runtime.database)).behind:
                    checks["database"] = "behind the code"
                else:
                    # For whoever watches; what waits or is dead is no reason to be unready.
                    deliveries = await Standing(runtime.database, runtime.clock.now).health()
        except Exception as error:
            traceback = None if is_away(error) else error
            log.error("readiness check failed", error=said(error), exc_info=traceback)
            checks["database"] = "not reachable"
        if runtime.database and runtime.database.has_replica:
            checks["replica"] = await _replica_check(runtime.database)
        if set(checks.values()) != {"ok"}:
            raise Unavailable("The service is not ready; checks says why.", checks=checks)
        return {**checks, "deliveries": deliveries}


async def _replica_check(database: Database) -> str:
    try:
        async with database.queries.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))
    except UNREACHABLE:
        log.exception("the replica does not answer")
        return "not reachable"
    return "ok"
