"""Tests of the store: what is computed once is found again, whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from mpcompile.store import results
from mpcompile.store.results import Store, digest, digest_arrays
from tests.paths import ROOT

KEY = {"kind": "test", "number": 1}


class Counted:
    """Arrays, and how often they were computed."""

    def __init__(self, value: float = 1.0, size: int = 4) -> None:
        self.count = 0
        self.value, self.size = value, size

    def __call__(self) -> dict[str, np.ndarray]:
        self.count += 1
        return {"a": np.full(self.size, self.value, np.float32), "b": np.arange(3)}


def refuse() -> dict[str, np.ndarray]:
    raise AssertionError("computed again")


def entry(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def test_arrays_are_computed_once(tmp_path: Path) -> None:
    compute = Counted()
    for _ in range(3):
        arrays = Store(tmp_path).fetch(KEY, compute)
        np.testing.assert_array_equal(arrays["a"], np.ones(4))
        assert arrays["a"].dtype == np.float32 and arrays["b"].tolist() == [0, 1, 2]
    assert compute.count == 1


def test_another_key_is_another_entry(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.fetch(KEY, Counted(1.0))["a"][0] == 1.0
    assert store.fetch({**KEY, "number": 2}, Counted(2.0))["a"][0] == 2.0
    assert len(list(tmp_path.iterdir())) == 2


def test_order_of_a_key_does_not_matter() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_folder_is_made_where_there_is_none(tmp_path: Path) -> None:
    Store(tmp_path / "a" / "b").fetch(KEY, Counted())
    Store(tmp_path / "a" / "b").fetch(KEY, refuse)


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"not safetensors at all", None], ids=["empty", "0", "text", "cut"])
def test_damaged_entry_is_computed_again(tmp_path: Path, damage: bytes | None) -> None:
    store = Store(tmp_path)
    store.fetch(KEY, Counted(1.0))
    path = entry(tmp_path)
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    assert store.fetch(KEY, Counted(2.0))["a"][0] == 2.0
    assert store.fetch(KEY, refuse)["a"][0] == 2.0


def test_failed_computation_stores_nothing(tmp_path: Path) -> None:
    def fail() -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).fetch(KEY, fail)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Store(tmp_path).fetch(KEY, Counted())
    assert list(tmp_path.iterdir()) == []


def test_full_disk_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    assert Store(tmp_path).fetch(KEY, Counted(3.0))["a"][0] == 3.0
    assert "cannot store intermediate results" in caplog.text and "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_file_in_place_of_the_folder_costs_no_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("content")
    assert Store(tmp_path / "file").fetch(KEY, Counted(3.0))["a"][0] == 3.0
    assert "cannot store intermediate results" in caplog.text


def test_full_disk_of_safetensors_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(results, "save_file", fail)
    store = Store(tmp_path)
    assert [store.fetch({**KEY, "number": n}, Counted(3.0))["a"][0] for n in range(3)] == [3.0, 3.0, 3.0]
    assert caplog.text.count("cannot store intermediate results") == 1
    assert list(tmp_path.iterdir()) == []


def test_entry_of_another_user_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path).fetch(KEY, Counted())

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(results, "load_file", fail)
    assert Store(tmp_path).fetch(KEY, Counted(3.0))["a"][0] == 3.0


def test_read_only_store_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path).fetch(KEY, Counted())

    def fail(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", fail)
    assert Store(tmp_path).fetch(KEY, refuse)["a"][0] == 1.0


def test_entries_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    Store(tmp_path / "store").fetch(KEY, Counted())
    (tmp_path / "new").touch()
    assert entry(tmp_path / "store").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_entries_unused_for_longest_go_when_the_store_is_full(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=13_500)  # three entries of 4,000 bytes and their headers
    keys = [{"number": number} for number in range(4)]
    for age, key in enumerate(keys[:3]):
        store.fetch(key, Counted(size=1000))
        path = tmp_path / f"{digest(key)}.safetensors"
        os.utime(path, (age, age))
    store.fetch(keys[0], refuse)  # used again, so now the youngest
    store.fetch(keys[3], Counted(size=1000))
    left = {path.stem for path in tmp_path.glob("*.safetensors")}
    assert left == {digest(keys[0]), digest(keys[2]), digest(keys[3])}


def test_store_stays_within_its_size(tmp_path: Path) -> None:
    store = Store(tmp_path, max_bytes=20_000)
    for number in range(12):
        store.fetch({"number": number}, Counted(size=1000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000


def test_entry_larger_than_the_store_is_returned(tmp_path: Path) -> None:
    assert len(Store(tmp_path, max_bytes=100).fetch(KEY, Counted(size=1000))["a"]) == 1000


def test_nothing_is_found_where_nothing_was_stored(tmp_path: Path) -> None:
    assert Store(tmp_path).find_maybe(KEY) is None
    assert Store(tmp_path / "no such folder").find_maybe(KEY) is None
    assert list(tmp_path.iterdir()) == []


def test_what_was_stored_is_found(tmp_path: Path) -> None:
    Store(tmp_path).fetch(KEY, Counted(3.0))
    found = Store(tmp_path).find_maybe(KEY)
    assert found is not None
    assert found["a"].tolist() == [3.0] * 4 and found["b"].tolist() == [0, 1, 2]


def test_what_was_stored_under_another_key_is_not_found(tmp_path: Path) -> None:
    Store(tmp_path).fetch(KEY, Counted())
    assert Store(tmp_path).find_maybe({**KEY, "number": 2}) is None


def test_damaged_entry_is_not_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fetch(KEY, Counted())
    entry(tmp_path).write_bytes(b"not safetensors at all")
    assert store.find_maybe(KEY) is None


def test_entry_that_is_found_counts_as_used(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fetch(KEY, Counted())
    os.utime(entry(tmp_path), (1, 1))
    store.find_maybe(KEY)
    assert entry(tmp_path).stat().st_mtime > 1


def test_kept_entry_takes_the_place_of_what_was_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.fetch(KEY, Counted(1.0))
    store.keep(KEY, Counted(2.0)())
    assert store.fetch(KEY, refuse)["a"][0] == 2.0


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, numpy\n"
        "from mpcompile.store.results import Store\n"
        "store = Store(pathlib.Path(sys.argv[1]), max_bytes=300_000)\n"
        "for i in range(150):\n"
        "    key = {'number': i % 20}\n"
        "    got = store.fetch(key, lambda: {'a': numpy.full(8000, i % 20, numpy.float32)})\n"
        "    assert got['a'].shape == (8000,) and (got['a'] == i % 20).all(), i\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert not list(tmp_path.glob("writing-*"))


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.array([1.0, 2.5], np.float32)},
        {"a": np.array([1.0, 2.0], np.float64)},
        {"a": np.array([[1.0, 2.0]], np.float32)},
        {"b": np.array([1.0, 2.0], np.float32)},
        {"a": np.array([1.0, 2.0], np.float32), "c": np.zeros(0)},
    ],
    ids=["value", "dtype", "shape", "name", "more"],
)
def test_digest_of_arrays_sees_every_difference(other: dict[str, np.ndarray]) -> None:
    assert digest_arrays({"a": np.array([1.0, 2.0], np.float32)}) != digest_arrays(other)


def test_digest_of_arrays_sees_values_not_layout() -> None:
    square = np.arange(6.0).reshape(2, 3)
    assert digest_arrays({"a": square, "s": np.float32(1)}) == digest_arrays(
        {"s": np.float32(1), "a": np.asfortranarray(square)}
    )
