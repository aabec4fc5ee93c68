"""The names of TensorRT's that are called were looked up in the bindings of every version."""

import json
from pathlib import Path

from mpcompile.backends.tensorrt.loader import NAMES, RTX_NAMES

RESULT = Path(__file__).parents[2] / "bench" / "results" / "tensorrt-names.json"


def test_every_name_that_is_called_was_looked_up_and_found() -> None:
    found = json.loads(RESULT.read_text())
    assert set(NAMES) <= set(found["names"]) and set(RTX_NAMES) <= set(found["rtx"])
    assert len(found["missing"]) == 4 and not any(found["missing"].values())
