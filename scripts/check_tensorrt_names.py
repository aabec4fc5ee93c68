"""Looks up every name of TensorRT's bindings that mpcompile calls in the wheels of several versions.

python scripts/check_tensorrt_names.py

The bindings do not import without the library, which only a GPU machine can install; but each name that they define
stands in the wheel's shared object, with a zero byte behind it (not before: linkers let strings share an ending).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mpcompile.backends.tensorrt.loader import NAMES, RTX_NAMES

WHEELS = (
    "tensorrt-cu12-bindings==10.3.0",
    "tensorrt-cu12-bindings==10.13.3.9",
    "tensorrt-cu13-bindings==11.4.0.106",
    "tensorrt-rtx-cu13-bindings==1.7.1.116",
)
RESULT = Path(__file__).parents[1] / "bench" / "results" / "tensorrt-names.json"


def find_missing(wheel: str, names: tuple[str, ...]) -> list[str]:
    """Names that a wheel does not have."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*command, "--dest", folder, wheel], check=True)
        (path,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".so"))
    return [name for name in names if name.encode() + b"\0" not in content]


def main() -> None:
    """Writes what was found; exits with 1 where a name is missing."""
    missing = {wheel: find_missing(wheel, (*NAMES, *RTX_NAMES) if "rtx" in wheel else NAMES) for wheel in WHEELS}
    values = {"command": "python scripts/check_tensorrt_names.py", "names": NAMES, "rtx": RTX_NAMES, "missing": missing}
    RESULT.write_text(json.dumps(values, indent=1) + "\n")
    for wheel, names in missing.items():
        print(f"{wheel}: {'all there' if not names else 'lacks ' + ', '.join(names)}")
    sys.exit(int(any(missing.values())))


if __name__ == "__main__":
    main()
