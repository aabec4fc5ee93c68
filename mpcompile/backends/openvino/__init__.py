"""The OpenVINO backend: one compiled model per segment, on CPUs."""
