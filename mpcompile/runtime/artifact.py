"""The artifact: a directory that holds everything a compiled model needs. Imports no torch, no pickle.

manifest.json       what is in here: SHA-256 of every file, versions, segments, operating points
manifest.sha256     SHA-256 of manifest.json, as `sha256sum -c` reads it
report.json         how it was made
engines/N.plan      one engine per segment
model/              the original as Hugging Face saves it: config.json, model.safetensors; one without a head also as
                    sentence-transformers does
exits.safetensors   weights of the exit heads
ngrams.safetensors  the classifier of the exit before the model, where there is one
backbone.safetensors weights that took the place of the original's, where it was fine-tuned
tokenizer.json, tokenization.json
known_texts.safetensors digests of the texts that the exit heads were trained on
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mpcompile.contract.backend import BuildConfig
from mpcompile.contract.profile import OptimizationProfile, Range
from mpcompile.contract.segment import Segment
from mpcompile.contract.task import Task
from mpcompile.errors import ArtifactError, SettingError
from mpcompile.runtime.ngrams import NGRAMS
from mpcompile.runtime.requests import ModelSignature
from mpcompile.runtime.tokens import SETTINGS_FILE, TOKENIZER_FILE

FORMAT = "mpcompile"
FORMAT_VERSION = 3
MANIFEST, CHECKSUM, REPORT, RECIPE = "manifest.json", "manifest.sha256", "report.json", "recipe.json"
EXITS, BACKBONE, MODEL = "exits.safetensors", "backbone.safetensors", "model"
SEGMENTS, KNOWN_TEXTS = "segments", "known_texts.safetensors"
_FOLDERS = ("engines", MODEL, SEGMENTS)
_OPTIONAL = (RECIPE, EXITS, NGRAMS, BACKBONE, KNOWN_TEXTS, TOKENIZER_FILE, SETTINGS_FILE)
_SEGMENT_FIELDS = ("index", "exit_layer", "prune_layers", "hidden_size", "input_names", "output_names", "precision")


@dataclass(frozen=True)
class Manifest:
    """Describes an artifact: backend, versions, segments, and what requests must fit.

    Attributes:
        backend: name of the backend that built the engines.
        fingerprint: of that backend on the machine that built them.
        versions: of mpcompile and what made the artifact.
        signature: what requests must fit.
        segments: the chain, without graphs.
        split_tokens: see `Runtime`.
        has_tokenizer: whether texts can be tokenized.
        config: that the engines are loaded with; of artifacts that were not tuned, the default.
        profile: that the engines were built for; None where it was not recorded.
    """

    backend: str
    fingerprint: dict[str, str]
    versions: dict[str, str]
    signature: ModelSignature
    segments: tuple[Segment, ...]
    split_tokens: tuple[float, ...]
    has_tokenizer: bool
    config: BuildConfig = field(default=BuildConfig())
    profile: OptimizationProfile | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "backend": self.backend,
            "fingerprint": self.fingerprint,
            "versions": self.versions,
            "signature": {**asdict(self.signature), "task": self.signature.task.to_json()},
            "segments": [{name: getattr(segment, name) for name in _SEGMENT_FIELDS} for segment in self.segments],
            "split_tokens": list(self.split_tokens),
            "has_tokenizer": self.has_tokenizer,
            "config": asdict(self.config),
            "profile": None if self.profile is None else asdict(self.profile),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_json` described."""
        signature = dict(values["signature"])
        signature["id2label"] = {int(i): name for i, name in signature["id2label"].items()}
        signature["input_names"] = tuple(signature["input_names"])
        single = {"kind": "single_label", "num_outputs": signature["num_labels"], "tolerance": ()}  # all of format 1
        signature["task"] = Task.from_json(signature.get("task", single))
        return cls(
            backend=values["backend"],
            fingerprint=values["fingerprint"],
            versions=values["versions"],
            signature=ModelSignature(**signature),
            segments=tuple(_read_segment(segment) for segment in values["segments"]),
            split_tokens=tuple(values["split_tokens"]),
            has_tokenizer=values["has_tokenizer"],
            config=BuildConfig(**values.get("config", {})),
            profile=read_profile(values.get("profile")),
        )


def _read_segment(values: Mapping[str, Any]) -> Segment:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Segment(**fields)


def read_profile(values: Mapping[str, Mapping[str, int]] | None) -> OptimizationProfile | None:
    """A profile from its JSON values."""
    return None if values is None else OptimizationProfile(**{name: Range(**sizes) for name, sizes in values.items()})


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Lists and hashes every file of a finished directory; the last thing that is written."""
    own = (directory / MANIFEST, directory / CHECKSUM)
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path not in own)
    files = {path.relative_to(directory).as_posix(): _sha256(path) for path in paths}
    values = {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest.to_json(), "files": files}
    path = directory / MANIFEST
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", "utf-8")
    (directory / CHECKSUM).write_text(f"{_sha256(path)}  {MANIFEST}\n", "utf-8")


def read_manifest(directory: Path) -> Manifest:
    """Reads an artifact's manifest and checks every file against it.

    Files of others that lie beside its own (`README.md`, `.gitattributes`, `.cache/`) are let alone.

    Raises:
        ArtifactError: when it is no artifact, of a newer format, one byte of one file differs, or a file lies where
            one of its own would be read.
    """
    values = _read_checked(directory)
    try:
        manifest, files = Manifest.from_json(values), dict(values["files"])
    except (KeyError, TypeError, ValueError, AttributeError, SettingError) as error:
        raise ArtifactError(
            f"{directory / MANIFEST}: lacks what its format needs ({error!r}); optimize again"
        ) from error
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path}: missing; copy the artifact again or optimize again")
        if _sha256(path) != expected:
            raise ArtifactError(f"{path}: damaged, its SHA-256 is not the one in {MANIFEST}; copy the artifact again")
    for name in sorted(_list_own_places(directory) - set(files)):
        raise ArtifactError(f"{directory}: holds {name}, which {MANIFEST} does not list; remove it")
    return manifest


def _list_own_places(directory: Path) -> set[str]:
    """Files that lie where the files of an artifact do: not those that hubs, git and file managers leave anywhere."""
    paths = [path.relative_to(directory) for folder in _FOLDERS for path in (directory / folder).rglob("*")]
    paths = [path for path in paths if path.suffix != ".md" and not any(part.startswith(".") for part in path.parts)]
    paths += [Path(name) for name in _OPTIONAL]
    return {path.as_posix() for path in paths if (directory / path).is_file()}


def list_files(directory: Path) -> tuple[str, ...]:
    """Names of the files of an artifact, without what else lies in its folder; of a damaged one, none."""
    try:
        return (*json.loads((directory / MANIFEST).read_bytes())["files"], MANIFEST, CHECKSUM)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of an artifact, and none that lies beside them."""
    for name in list_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / name, target / name)


def _read_checked(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such folder; expected one that mpcompile wrote")
    if not path.is_file():
        raise ArtifactError(f"{directory}: no {MANIFEST} in it; expected a folder that mpcompile wrote")
    content = path.read_bytes()
    checksum = directory / CHECKSUM
    recorded = checksum.read_bytes() if checksum.is_file() else b""
    if recorded != f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode():
        _raise_if_foreign(path, content)
        raise ArtifactError(f"{path}: damaged, its SHA-256 is not the one in {CHECKSUM}; copy the artifact again")
    values: dict[str, Any] = _raise_if_foreign(path, content)
    return values


def _raise_if_foreign(path: Path, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON ({error}); it is damaged or not of mpcompile") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ArtifactError(f"{path}: not an artifact of mpcompile")
    version = values.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format {version}; this mpcompile reads up to {FORMAT_VERSION}: install a newer one"
        )
    return values


def plan_path(directory: Path, index: int) -> Path:
    """Where an artifact keeps the plan of a segment."""
    return directory / "engines" / f"{index}.plan"


def write_plans(directory: Path, plans: Sequence[bytes]) -> None:
    """Writes the plans of a chain into an artifact, in the place of those that were there."""
    folder = plan_path(directory, 0).parent
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    for index, plan in enumerate(plans):
        plan_path(directory, index).write_bytes(plan)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
