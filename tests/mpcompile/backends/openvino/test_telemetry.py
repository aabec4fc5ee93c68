"""Tests that nothing is reported to the makers of OpenVINO and NNCF, whose events are sent by threads of a pool."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.paths import ROOT

pytest.importorskip("openvino")
telemetry = pytest.importorskip("openvino_telemetry")

SENDS = "from concurrent.futures import ThreadPoolExecutor as pool\npool.submit = lambda *_: print('sent')\nimport "


@pytest.mark.parametrize(("module", "sent"), [("mpcompile.backends.openvino.backend", False), ("openvino", True)])
def test_importing_the_backend_sends_nothing(module: str, sent: bool, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", SENDS + module], env=environment | {"HOME": str(tmp_path)}, cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("sent" in done.stdout) == sent


def test_event_of_a_user_who_has_not_opted_out_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    importlib.import_module("mpcompile.backends.openvino.backend")
    sender = telemetry.Telemetry()
    monkeypatch.setattr(sender, "consent", True)
    monkeypatch.setattr(sender.sender, "executor", SimpleNamespace(submit=lambda *call: sent.append(call)))
    sender.send_event("ovc", "version", "1")
    assert not sent
