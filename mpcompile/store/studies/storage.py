"""Storages of studies: SQLite under the user's cache directory, or any Optuna storage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from mpcompile.errors import SettingError, StudyError
from mpcompile.logs import kept_root_logger
from mpcompile.store.interrupts import held_interrupts

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage

_LOCK_S = 60.0
"""Seconds that SQLite waits for another process to finish its write."""
_TRIES, _PAUSE_S = 2, 0.2
_FULL = ("disk is full", "no space left", "disk full")


def find_default_url(key: str, cache_dir: Path | None) -> str:
    """URL of a SQLite file under the cache directory, whose folder is made.

    Raises:
        StudyError: when the folder cannot be made.
    """
    folder = (cache_dir or platformdirs.user_cache_path("mpcompile")) / "tuning"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(
            f"{folder}: the study cannot be kept there: {error}; make room, or pass --storage sqlite:///FILE"
        ) from error
    return f"sqlite:///{folder / key}.db"


def open_storage(url: str) -> BaseStorage:
    """Connects to an Optuna storage; a database that is new gets its tables.

    Raises:
        SettingError: when the URL is not one, its driver is missing or the database cannot be reached.
    """
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with kept_root_logger():
            return _connect(url)
    # RuntimeError is Optuna's for the tables of another version of it.
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        if _is_full(error):
            raise StudyError(_describe_full(url)) from error
        raise SettingError(
            f"--storage {hide_password(url)!r}: cannot be opened: {_first_line(error)}; expected an Optuna storage "
            "such as sqlite:///tune.db or postgresql://user@host/database, with its driver installed"
        ) from error


def _connect(url: str) -> BaseStorage:
    import optuna
    from sqlalchemy.exc import DBAPIError

    options: dict[str, Any] = {"connect_args": {"timeout": _LOCK_S}} if url.startswith("sqlite") else {}
    for _ in range(_TRIES):
        # When several processes open a new database at once, all but one fail, since the tables are there already.
        with contextlib.suppress(DBAPIError):
            return _serialize(optuna.storages.RDBStorage(url, engine_kwargs=options))
        time.sleep(_PAUSE_S)
    return _serialize(optuna.storages.RDBStorage(url, engine_kwargs=options))


def _serialize(storage: RDBStorage) -> RDBStorage:
    """Lets SQLite take its lock before the first read of a transaction instead of before the first write.

    Optuna reads whether a trial still waits `FOR UPDATE`, which SQLite does not know: two processes both read that
    it does, and both take it.
    """
    from sqlalchemy import event

    if storage.engine.dialect.name == "sqlite":
        event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return storage


@contextlib.contextmanager
def using_storage(url: str) -> Iterator[None]:
    """Turns exceptions of a database into errors that say what to do; Ctrl-C waits until the block is left.

    Raises:
        StudyError: when the disk is full or the storage fails; what was recorded before stays.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with held_interrupts():
            yield
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        if _is_full(error):
            raise StudyError(_describe_full(url)) from error
        raise StudyError(
            f"study at {hide_password(url)}: the storage failed: {_first_line(error.__cause__ or error)}; what was "
            "measured before is kept: the same command goes on from there"
        ) from error


def hide_password(url: str) -> str:
    """A URL that may be shown."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if any(text in str(error).lower() for text in _FULL):
            return True
        error = error.__cause__
    return False


def _describe_full(url: str) -> str:
    return (
        f"study at {hide_password(url)}: the disk is full; make room there and run the same command again: what was "
        "measured before is kept and not measured twice"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
