"""Keeps OpenVINO and NNCF from reporting what is done with them."""

from __future__ import annotations

import contextlib


def turn_off_telemetry() -> None:
    """Lets no event of `openvino_telemetry` out of this process, nor those of the user's own calls of OpenVINO.

    It sends to Google Analytics unless the user has opted out, and forks the process for each event, dozens of times in
    a conversion: with torch loaded that takes as long as the conversion, and without internet each waits for 3 s.
    Call it before openvino is imported, which is an event, too.
    """
    with contextlib.suppress(ImportError):
        from openvino_telemetry.utils.sender import TelemetrySender

        TelemetrySender.send = _drop


def _drop(*_: object) -> None:
    pass
