"""Every error that a user of mpcompile can cause, and therefore can fix.

A message says what was wrong, the value, what is allowed and what to do:
``keep_ratios[14]: the model has 12 encoder layers (0-11).``
"""


class MpcompileError(Exception):
    """Base class of every error that the user can fix."""


class CaptureError(MpcompileError):
    """The model could not be turned into a graph that mpcompile understands."""


class DataError(MpcompileError):
    """Texts or labels are missing, malformed or do not fit the model."""


class InputError(MpcompileError):
    """A request has a shape, dtype or mask that the model cannot answer."""


class SettingError(MpcompileError):
    """An option has a value that is not allowed."""


class TargetUnreachable(MpcompileError):
    """No operating point meets the target speedup within the allowed loss.

    Attributes:
        front: the operating points that were found, fastest last.
    """

    def __init__(self, message: str, front: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.front = front


class ArtifactError(MpcompileError):
    """A saved model is damaged, foreign or of a format that this version cannot read."""


class BackendError(MpcompileError):
    """A backend is missing, or could not build or run an engine."""


class BatchTooLarge(BackendError):
    """An engine cannot take this many examples at once: the runtime splits them.

    Attributes:
        max_rows: examples that it can take; 0 when there is no room even for one.
    """

    def __init__(self, message: str, max_rows: int) -> None:
        super().__init__(message)
        self.max_rows = max_rows


class StudyError(MpcompileError):
    """A study belongs to something else or is out of reach."""


class TuningError(MpcompileError):
    """Tuning cannot go on: nothing can be measured."""
