"""Which model a study belongs to, and which process works on a trial, so that others take over from killed ones."""

from __future__ import annotations

import datetime
import os
import socket
import time
import uuid
from collections.abc import Mapping

import optuna
from optuna.trial import FrozenTrial, Trial

from mpcompile.errors import StudyError

GRACE_S = 1800.0
"""Seconds without a sign of life after which a trial of another machine counts as given up: a build may take 600."""
_PROCESS = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex}"
"""Identifies this process. A random part is needed, because process ids are reused, above all in containers."""


def check_identity(study: optuna.Study, identity: Mapping[str, str], name: str, maker: str, fix: str) -> None:
    """Writes into a new study what it belongs to, and refuses a study of something else.

    Args:
        study: may be new.
        identity: what it must belong to: model, texts, machine.
        name: of the study, for people.
        maker: what makes such studies, for people.
        fix: what to do about a foreign one.

    Raises:
        StudyError: when it belongs to something else.
    """
    found = study.user_attrs.get("identity")
    if found is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("identity", dict(identity))
        return
    if found is None:
        raise StudyError(f"{name}: was not made by {maker}; {fix}")
    for key, value in identity.items():
        if found.get(key) != value:
            raise StudyError(f"{name}: its {key} is {found.get(key)}, this one is {value}; {fix}")


def sign(trial: Trial) -> None:
    """Records which process works on a trial, and when it last did."""
    trial.set_user_attr("signed", {"owner": _PROCESS, "at": time.time()})


def is_given_up(trial: FrozenTrial) -> bool:
    """Whether the process that worked on a running trial is gone."""
    signed = trial.user_attrs.get("signed")
    if signed is None:  # not signed yet, or killed in the moment between taking it and signing
        started = trial.datetime_start or datetime.datetime.now()
        return (datetime.datetime.now() - started).total_seconds() > GRACE_S
    if signed["owner"] == _PROCESS:
        return False
    host, pid, _ = signed["owner"].split("/")
    if host == socket.gethostname() and os.name == "posix":
        return int(pid) == os.getpid() or not _is_alive(int(pid))
    return time.time() - float(signed["at"]) > GRACE_S


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
