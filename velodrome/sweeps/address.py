"""The address of a storage: what is wrong with it, how to reach it, how to show it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from velodrome.errors import ConfigError
from velodrome.run.environment import without_passwords

# The first version with the names that are used here.
OPTUNA = (4, 9)
# A server is asked for so long, in seconds, before it counts as one that cannot be reached.
CONNECT_S = 5
# Another process may write to a SQLite file for so long.
BUSY_S = 60
EXAMPLE = "For instance --storage postgresql://user@host/database."


def check_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        ConfigError: it is not, or is too old.
    """
    remedy = "Install it: pip install 'velodrome[sweep]'."
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("velodrome sweep needs the package optuna, which is not installed.", remedy)
    version = importlib.metadata.version("optuna")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < OPTUNA:
        least = ".".join(map(str, OPTUNA))
        raise ConfigError(f"optuna is version {version}, but must be at least {least}.", remedy)


def sqlite_address(path: Path) -> str:
    """The address of a SQLite file."""
    return f"sqlite:///{path.absolute()}"


def check_address(address: str) -> str:
    """The address with the driver that is installed, if it is one at which a study can be kept.

    Raises:
        ConfigError: it is not; its text, which may hold a password, is not repeated.
    """
    scheme, found, rest = address.partition("://")
    if not found or not re.fullmatch(r"\w+(\+\w+)?", scheme):
        raise ConfigError("--storage is not the address of a database.", EXAMPLE)
    database, _, driver = scheme.partition("+")
    if database.startswith("redis"):
        raise ConfigError(
            "--storage is a Redis server, which does not tell whether a worker is still alive.", EXAMPLE
        )
    if database == "sqlite" and rest.split("?")[0].strip("/") in ("", ":memory:"):
        raise ConfigError(
            "--storage is a SQLite database in memory, which ends with this process.",
            "Leave it out, or name a file: sqlite:////absolute/path/study.db.",
        )
    if rest.partition("?")[0].count("@") > 1:
        raise ConfigError("--storage has more than one @.", "In a password write %40 for it.")
    if database in ("postgres", "postgresql"):
        driver = driver or ("psycopg" if importlib.util.find_spec("psycopg") else "psycopg2")
        return f"postgresql+{driver}://{rest}"
    return address


def engine_options(address: str) -> Mapping[str, Any]:
    """How to connect, so that nothing waits for a server that has gone."""
    if address.startswith("sqlite"):
        return {"connect_args": {"timeout": BUSY_S}}
    connect: dict[str, Any] = {}
    if address.startswith(("postgresql+psycopg:", "postgresql+psycopg2:")):
        # In seconds, but for the last, which is in milliseconds: how long sent data may stay unanswered.
        connect = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
        connect["tcp_user_timeout"] = 20_000
    return {"connect_args": {"connect_timeout": CONNECT_S, **connect}, "pool_pre_ping": True}


def check_answers(address: str) -> None:
    """Check that a server can be reached; a file is left alone.

    Args:
        address: checked.

    Raises:
        ConfigError: it cannot.
    """
    if address.startswith("sqlite"):
        return
    import sqlalchemy  # noqa: PLC0415 (takes a moment, and only servers need it here)

    try:
        engine = sqlalchemy.create_engine(address, **engine_options(address))
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise cannot_reach(address, error) from None


def shown(address: str) -> str:
    """The address as it may be printed and written down."""
    return without_passwords(re.sub(r"^postgresql\+psycopg2?:", "postgresql:", address))


def cannot_reach(address: str, error: Exception) -> ConfigError:
    """That a storage cannot be used, why, and what to do about it."""
    if isinstance(error, ImportError):
        extra = "postgres" if address.startswith("postgresql") else None
        return ConfigError(
            f"The storage {shown(address)} needs a driver that is not installed.",
            "Install it: pip install 'velodrome[sweep,postgres]'."
            if extra
            else "Install the driver that SQLAlchemy names for this database.",
        )
    if type(error).__name__ == "NoSuchModuleError":
        return ConfigError(
            f"The storage {shown(address)} is of a kind that SQLAlchemy does not know.", EXAMPLE
        )
    if isinstance(error, RuntimeError):  # by which Optuna says that its tables are those of another version
        return ConfigError(
            f"The storage {shown(address)} was made by another version of Optuna.",
            "Use that version, or another storage; `optuna storage upgrade` brings an older one up to date.",
        )
    return ConfigError(
        f"The storage {shown(address)} cannot be reached: {reason_of(error)}.",
        "Check the address, that the server runs, and that its user may create tables.",
    )


def reason_of(error: BaseException) -> str:
    """Why a database failed, in a line without passwords."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines()
    return without_passwords(lines[0] if lines else type(original).__name__).rstrip(".")
