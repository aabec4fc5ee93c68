"""Optuna studies in a database: opening them, telling whose they are and who works on what.

Raises `StudyError` on import where Optuna is missing.
"""

from mpcompile.errors import StudyError

try:
    import optuna as optuna
except ImportError as error:
    raise StudyError("optuna, which keeps studies, is not installed; pip install mpcompile[tune]") from error
