"""The OpenVINO backend: one compiled model per segment, on CPUs."""

from mpcompile.backends.openvino.telemetry import turn_off_telemetry

turn_off_telemetry()
