"""Optuna studies in a database: opens them, and tells which model and process they and their trials belong to.

Raises `StudyError` on import where Optuna is missing.
"""

from mpcompile.errors import StudyError

try:
    import optuna as optuna
except ImportError as error:
    raise StudyError("optuna, which keeps studies, is not installed; pip install mpcompile[tune]") from error
