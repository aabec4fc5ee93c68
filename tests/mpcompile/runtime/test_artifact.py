"""Tests of artifacts: what is saved is what is loaded, and nothing damaged or foreign is."""

import copy
import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpcompile
from mpcompile.backends.openvino.backend import OpenVinoBackend
from mpcompile.contract.task import Task
from mpcompile.errors import ArtifactError, SettingError
from mpcompile.runtime import load as loading
from mpcompile.runtime.artifact import CHECKSUM, MANIFEST, Manifest, read_manifest, write_manifest
from mpcompile.runtime.directories import replace_directory
from mpcompile.runtime.model import OptimizedModel
from tests.paths import ROOT

FILES = (
    "engines/0.plan",
    "engines/1.plan",
    "exits.safetensors",
    "manifest.json",
    "manifest.sha256",
    "model/config.json",
    "model/model.safetensors",
    "report.json",
    "tokenization.json",
    "tokenizer.json",
)
LISTED = tuple(name for name in FILES if not name.startswith("manifest."))
TEXTS = ["ban del", "fip", "gos hur jan kel lip", "", "mos nur pan"]


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    """A copy of the artifact that a test may damage."""
    return Path(shutil.copytree(artifact, tmp_path / "copied"))


@pytest.fixture
def saved(artifact: Path, tmp_path: Path) -> Path:
    """What the artifact gives when it is loaded and saved again."""
    return mpcompile.load(artifact).save(tmp_path / "saved")


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the manifest and writes the checksum that belongs to the change."""
    values = json.loads((folder / MANIFEST).read_text())
    change(values)
    write_manifest_text(folder, json.dumps(values))


def write_manifest_text(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / CHECKSUM).write_text(f"{digest}  {MANIFEST}\n")


def flip_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)


def assert_same_answers(model: OptimizedModel, other: OptimizedModel) -> None:
    for point in range(len(model.operating_points)):
        for each in (model, other):
            each.set_speedup(each.operating_points[point].speedup)
        logits, exit_layer = model.classify(TEXTS)
        other_logits, other_exit_layer = other.classify(TEXTS)
        np.testing.assert_array_equal(exit_layer, other_exit_layer)
        np.testing.assert_allclose(logits, other_logits, atol=1e-5)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_and_raise(target: Path, error: BaseException | type[BaseException]) -> None:
    """Starts to replace a folder, and fails in the middle."""
    with replace_directory(target) as temporary:
        (temporary / MANIFEST).write_text("half of")
        raise error


def run_python(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_saved_model_answers_as_the_one_that_was_saved(artifact: Path, saved: Path) -> None:
    assert_same_answers(mpcompile.load(saved), mpcompile.load(artifact))


def test_optimized_model_answers_alike_after_saving(optimized: OptimizedModel, tmp_path: Path) -> None:
    loaded = mpcompile.load(optimized.save(tmp_path / "saved"))
    np.testing.assert_allclose(loaded.classify(TEXTS)[0], optimized.classify(TEXTS)[0], atol=1e-5)


def test_report_and_front_survive_saving(artifact: Path, saved: Path) -> None:
    assert mpcompile.load(saved).report == mpcompile.load(artifact).report


def test_loaded_model_starts_at_the_chosen_point(artifact: Path) -> None:
    loaded = mpcompile.load(artifact)
    assert loaded.operating_point == loaded.operating_points[1]


def test_manifest_survives_writing_and_reading(artifact: Path, tmp_path: Path) -> None:
    manifest = read_manifest(artifact)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json()))) == manifest


def test_saved_files_are_those_of_the_format(saved: Path) -> None:
    assert {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()} == set(FILES)


def test_manifest_lists_the_sha_256_of_every_other_file(saved: Path) -> None:
    listed = json.loads((saved / MANIFEST).read_text())["files"]
    assert listed == {name: hashlib.sha256((saved / name).read_bytes()).hexdigest() for name in LISTED}


def test_checksum_of_the_manifest_is_in_the_form_of_sha256sum(saved: Path) -> None:
    digest = hashlib.sha256((saved / MANIFEST).read_bytes()).hexdigest()
    assert (saved / CHECKSUM).read_text() == f"{digest}  manifest.json\n"


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_is_found(copied: Path, name: str, share: float) -> None:
    path = copied / name
    flip_byte(path, int(share * (path.stat().st_size - 1)))
    with pytest.raises(ArtifactError) as error:
        mpcompile.load(copied)
    assert str(copied) in str(error.value)
    assert name in str(error.value)


def test_flipped_bytes_all_over_the_manifest_are_found(copied: Path) -> None:
    content = (copied / MANIFEST).read_bytes()
    for position in range(0, len(content), 5):
        flip_byte(copied / MANIFEST, position)
        with pytest.raises(ArtifactError, match=MANIFEST):
            read_manifest(copied)
        (copied / MANIFEST).write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_truncated_file_is_found(copied: Path, name: str) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match=name):
        mpcompile.load(copied)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_found(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        mpcompile.load(copied)


@pytest.mark.parametrize("name", ["backbone.safetensors", "engines/2.plan", "model/pytorch_model.bin"])
def test_file_that_the_manifest_does_not_list_is_refused(copied: Path, name: str) -> None:
    (copied / name).write_text("extra")
    with pytest.raises(ArtifactError, match=f"{name}.*remove it"):
        mpcompile.load(copied)


BESIDE = [".gitattributes", "README.md", ".DS_Store", ".cache/huggingface/x.lock", "model/.DS_Store", "model/README.md"]


@pytest.mark.parametrize("name", BESIDE)
def test_file_of_somebody_else_is_let_alone(copied: Path, name: str) -> None:
    (copied / name).parent.mkdir(parents=True, exist_ok=True)
    (copied / name).write_text("theirs")
    mpcompile.load(copied)
    assert (copied / name).read_text() == "theirs"


def test_files_of_somebody_else_stay_where_an_artifact_is_replaced(artifact: Path, copied: Path) -> None:
    (copied / ".git").mkdir()
    (copied / ".git" / "HEAD").write_text("ref")
    (copied / "README.md").write_text("theirs")
    mpcompile.load(artifact).save(copied)
    mpcompile.load(copied)
    assert (copied / ".git" / "HEAD").read_text() == "ref"
    assert (copied / "README.md").read_text() == "theirs"


def test_files_of_somebody_else_are_not_saved_along(copied: Path, tmp_path: Path) -> None:
    (copied / "notes.txt").write_text("theirs")
    mpcompile.load(copied).save(tmp_path / "out")
    assert not (tmp_path / "out" / "notes.txt").exists()


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere: no such folder"):
        mpcompile.load(tmp_path / "nowhere")


def test_file_in_place_of_a_folder_is_refused(copied: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: no such folder"):
        mpcompile.load(copied / "tokenizer.json")


def test_foreign_folder_is_refused(tiny_model_dir: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.json in it; expected a folder that mpcompile wrote"):
        mpcompile.load(tiny_model_dir)


def test_foreign_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"manifest_version": 3, "name": "a browser extension"}')
    with pytest.raises(ArtifactError, match=r"manifest\.json: not an artifact of mpcompile"):
        mpcompile.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "not JSON", "[1, 2]", "null", '"text"', "[" * 100_000])
def test_manifest_that_is_no_json_object_is_refused(copied: Path, text: str) -> None:
    write_manifest_text(copied, text)
    with pytest.raises(ArtifactError, match=r"manifest\.json: not"):
        mpcompile.load(copied)


def test_manifest_of_other_bytes_than_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(b'{"format": "\xff"}')
    with pytest.raises(ArtifactError, match=r"manifest\.json: not JSON"):
        mpcompile.load(tmp_path)


def test_newer_format_is_refused(copied: Path) -> None:
    edit_manifest(copied, lambda values: values.update(format_version=4))
    with pytest.raises(ArtifactError, match="format 4; this mpcompile reads up to 3: install a newer one"):
        mpcompile.load(copied)


def test_artifact_of_the_first_format_is_a_classifier_of_one_label(copied: Path) -> None:
    def make_old(values: dict[str, Any]) -> None:
        values["format_version"] = 1
        del values["signature"]["task"]

    edit_manifest(copied, make_old)
    assert mpcompile.load(copied).task == Task("single_label", 3)


@pytest.mark.parametrize("version", [None, "1", 1.5, [1]])
def test_format_version_that_is_no_whole_number_is_refused(copied: Path, version: object) -> None:
    edit_manifest(copied, lambda values: values.update(format_version=version))
    with pytest.raises(ArtifactError, match="format"):
        mpcompile.load(copied)


@pytest.mark.parametrize("key", ["backend", "fingerprint", "signature", "segments", "files", "split_tokens"])
def test_manifest_that_lacks_a_key_is_refused(copied: Path, key: str) -> None:
    edit_manifest(copied, lambda values: values.pop(key))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        mpcompile.load(copied)


def test_backend_of_another_version_is_named(copied: Path) -> None:
    edit_manifest(copied, lambda values: values.update(backend="abacus"))
    with pytest.raises(mpcompile.MpcompileError, match="abacus"):
        mpcompile.load(copied)


def test_save_over_a_folder_of_something_else_is_refused(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="exists and is not an artifact of mpcompile"):
        mpcompile.load(artifact).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_save_over_a_file_is_refused(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(ArtifactError, match="file: exists and is not an artifact"):
        mpcompile.load(artifact).save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "content"


def test_save_under_a_file_is_refused(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with pytest.raises(ArtifactError, match="cannot be written"):
        mpcompile.load(artifact).save(tmp_path / "file" / "artifact")


def test_save_into_an_empty_folder_is_allowed(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    mpcompile.load(mpcompile.load(artifact).save(tmp_path / "empty"))


def test_save_makes_folders_on_the_way(artifact: Path, tmp_path: Path) -> None:
    mpcompile.load(mpcompile.load(artifact).save(tmp_path / "a" / "b" / "c"))


def test_save_over_an_artifact_replaces_it(artifact: Path, copied: Path) -> None:
    (copied / "engines" / "9.plan").write_text("of the old one")
    mpcompile.load(artifact).save(copied)
    assert not (copied / "engines" / "9.plan").exists()
    mpcompile.load(copied)


def test_save_over_itself_leaves_a_whole_artifact(copied: Path) -> None:
    loaded = mpcompile.load(copied)
    loaded.save(copied)
    assert_same_answers(loaded, mpcompile.load(copied))


def test_save_leaves_nothing_beside_the_artifact(artifact: Path, tmp_path: Path) -> None:
    for _ in range(2):
        mpcompile.load(artifact).save(tmp_path / "out")
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, OSError])
def test_interrupted_save_leaves_nothing(tmp_path: Path, interruption: type[BaseException]) -> None:
    with pytest.raises((interruption, ArtifactError)):
        write_and_raise(tmp_path / "out", interruption)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_save_leaves_the_artifact_that_was_there(copied: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_and_raise(copied, KeyboardInterrupt)
    mpcompile.load(copied)
    assert names_in(copied.parent) == [copied.name]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")], ids=["Ctrl-C", "disk full"])
def test_failure_while_folders_are_swapped_leaves_the_artifact_that_was_there(
    copied: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    rename = os.rename
    with monkeypatch.context() as patch:

        def fail_for_the_new_one(source: Any, target: Any) -> None:
            if Path(target) == copied and ".writing-" in str(source):
                raise interruption
            rename(source, target)

        patch.setattr(os, "rename", fail_for_the_new_one)
        with pytest.raises((KeyboardInterrupt, ArtifactError)), replace_directory(copied) as temporary:
            (temporary / MANIFEST).write_text("new")
    mpcompile.load(copied)


def test_process_that_saves_in_between_does_no_harm(
    artifact: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, rename = mpcompile.load(artifact), os.rename

    def save_before_the_new_one(source: Any, target: Any) -> None:
        if Path(target) == copied and ".writing-" in str(source) and not copied.exists():
            shutil.copytree(artifact, copied)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", save_before_the_new_one)
        loaded.save(copied)
    mpcompile.load(copied)
    assert names_in(copied.parent) == [copied.name]


def test_two_processes_that_save_at_once_leave_one_whole_artifact(artifact: Path, tmp_path: Path) -> None:
    program = (
        "import sys, mpcompile\n"
        "model = mpcompile.load(sys.argv[1])\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "for _ in range(60): model.save(sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, str(artifact), str(tmp_path / "out")]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    errors = [process.communicate()[1] for process in processes]
    mpcompile.load(tmp_path / "out")
    assert names_in(tmp_path) == ["out"]
    assert [process.returncode for process in processes] == [0, 0], errors


@pytest.fixture(scope="module")
def stale(eager_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the eager backend whose engines were built by an older torch."""
    folder = Path(shutil.copytree(eager_artifact, tmp_path_factory.mktemp("stale") / "artifact"))
    edit_manifest(folder, lambda values: values["fingerprint"].update(torch="1.13.0"))
    return folder


def test_stale_engines_are_rebuilt_and_the_report_says_so(stale: Path, tmp_path: Path) -> None:
    loaded = mpcompile.load(stale, cache_dir=tmp_path)
    assert "engines were rebuilt: torch was 1.13.0, is " in str(loaded.report)


def test_rebuilt_engines_answer_as_before(stale: Path, eager_artifact: Path, tmp_path: Path) -> None:
    assert_same_answers(mpcompile.load(stale, cache_dir=tmp_path), mpcompile.load(eager_artifact))


def test_stale_openvino_engines_are_rebuilt(copied: Path, artifact: Path, tmp_path: Path) -> None:
    edit_manifest(copied, lambda values: values["fingerprint"].update(cpu="Intel 8086"))
    loaded = mpcompile.load(copied, cache_dir=tmp_path / "cache")
    assert "cpu was Intel 8086" in str(loaded.report.notes)
    assert_same_answers(loaded, mpcompile.load(artifact))


def test_fresh_engines_are_not_rebuilt(artifact: Path, tmp_path: Path) -> None:
    assert mpcompile.load(artifact, cache_dir=tmp_path).report.notes == ()
    assert list(tmp_path.iterdir()) == []


def test_eager_artifact_answers_as_the_openvino_one(artifact: Path, eager_artifact: Path) -> None:
    assert_same_answers(mpcompile.load(eager_artifact), mpcompile.load(artifact))


def test_loading_and_predicting_import_neither_torch_nor_transformers(artifact: Path) -> None:
    program = (
        "import sys, mpcompile, numpy\n"
        "model = mpcompile.load(sys.argv[1])\n"
        "assert len(model.predict(['ban del', 'fip'])) == 2\n"
        "assert model(input_ids=numpy.array([[2, 7, 3]])).logits.shape == (1, 3)\n"
        "model.set_speedup(4)\n"
        "str(model.report)\n"
        "heavy = {'torch', 'transformers', 'passes', 'scipy', 'sympy'}\n"
        "print(*sorted(heavy & set(sys.modules)))\n"
    )
    done = run_python(program, artifact)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


def test_saving_a_loaded_model_imports_no_torch(artifact: Path, tmp_path: Path) -> None:
    program = "import sys, mpcompile\nmpcompile.load(sys.argv[1]).save(sys.argv[2])\nassert 'torch' not in sys.modules"
    done = run_python(program, artifact, tmp_path / "out")
    assert done.returncode == 0, done.stderr


def test_no_pickle_on_the_load_path(artifact: Path) -> None:
    program = (
        "import pickle, sys\n"
        "def refuse(*_, **__): raise AssertionError('pickle on the load path')\n"
        "class Refuse:\n"
        "    def __init__(self, *_, **__): refuse()\n"
        "pickle.load = pickle.loads = pickle._load = pickle._loads = refuse\n"
        "pickle.Unpickler = pickle._Unpickler = Refuse\n"
        "import mpcompile\n"
        "mpcompile.load(sys.argv[1]).predict(['ban del'])\n"
    )
    done = run_python(program, artifact)
    assert done.returncode == 0, done.stderr


def test_precision_that_the_machine_lacks_runs_in_f32(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenVinoBackend, "precisions", lambda self: ("f32",))
    manifest = read_manifest(artifact)
    segments = tuple(dataclasses.replace(segment, precision="bf16") for segment in manifest.segments)
    monkeypatch.setattr(loading, "read_manifest", lambda path: dataclasses.replace(manifest, segments=segments))
    model = mpcompile.load(artifact)
    assert {segment.precision for segment in model.runtime.segments} == {"f32"}
    assert "does not run bf16 natively" in str(model.report)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_others_may_read_an_artifact_where_they_may_read_new_files(
    tmp_path: Path, umask: int, file_mode: int, folder_mode: int
) -> None:
    before = os.umask(umask)
    try:
        with replace_directory(tmp_path / "out") as folder:
            (folder / "model").mkdir()
            for name in ("manifest.json", "exits.safetensors", "model/model.safetensors"):
                (folder / name).write_text("{}")
                (folder / name).chmod(0o600)  # as safetensors leaves them
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {file_mode}
    assert stat.S_IMODE((tmp_path / "out" / "model").stat().st_mode) == folder_mode
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == folder_mode
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_cache_folder_may_be_a_string(stale: Path, tmp_path: Path) -> None:
    mpcompile.load(stale, cache_dir=str(tmp_path / "cache"))
    assert (tmp_path / "cache").is_dir()


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_model_that_is_copied_says_what_to_do_instead(artifact: Path, make: Callable[[Any], Any]) -> None:
    with pytest.raises(SettingError, match=r"cannot be pickled or copied.*mpcompile.load\(folder\) in each process"):
        make(mpcompile.load(artifact))


def test_model_that_is_called_in_a_forked_process_says_what_to_do_instead(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = mpcompile.load(artifact)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    for call in (lambda: loaded.predict(["ban"]), lambda: loaded(input_ids=[[2, 7, 3]])):
        with pytest.raises(SettingError, match=r"forked .* mpcompile.load\(folder\) in each process, of a pool in its"):
            call()
