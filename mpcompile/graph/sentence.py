"""Sentence encoders: an encoder whose answer is one vector per text, as sentence-transformers keeps them in folders.

Shapes: B texts, S tokens, D hidden size.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcompile.errors import CaptureError

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MODULES, SETTINGS, POOLING = "modules.json", "sentence_bert_config.json", "1_Pooling"
_UNDERSTOOD = ("Transformer", "Pooling", "Normalize")
_ADVICE = "only the mean over tokens (pooling_mode_mean_tokens), with or without Normalize, is supported"


@dataclass(frozen=True)
class Pooling:
    """How a folder of sentence-transformers makes one vector of a text: the mean over its tokens.

    Attributes:
        normalise: whether vectors are divided by their length.
        subfolder: where the encoder lies, "" for the folder itself.
        max_length: tokens that texts are truncated to, None for what the tokenizer says.
    """

    normalise: bool = False
    subfolder: str = ""
    max_length: int | None = None


def is_encoder(model: object) -> bool:
    """Whether a transformers model is an encoder without a head, such as BertModel."""
    return type(model).__name__.endswith("Model")


def pool_mean(hidden: Tensor, attention_mask: Tensor, normalise: bool) -> Tensor:
    """What sentence-transformers answers: the mean over real tokens of (B, S, D), (B, D)."""
    import torch

    weight = attention_mask[:, :, None].to(hidden.dtype)
    mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, dim=-1) if normalise else mean


def read_pooling_maybe(place: str) -> Pooling | None:
    """Reads a folder or hub id of sentence-transformers, None where it is none.

    Raises:
        CaptureError: when it does something else than taking the mean over tokens.
    """
    modules = read_json_maybe(place, MODULES)
    if modules is None:
        return None
    folders = {str(module["type"]).rsplit(".", 1)[-1]: str(module["path"]) for module in modules}
    unknown = [name for name in folders if name not in _UNDERSTOOD]
    if unknown or "Transformer" not in folders or "Pooling" not in folders:
        raise CaptureError(f"{place}: {MODULES} lists {', '.join(folders)}; {_ADVICE}")
    _check_mean(place, _join(folders["Pooling"], "config.json"))
    settings = read_json_maybe(place, _join(folders["Transformer"], SETTINGS)) or {}
    if settings.get("do_lower_case"):
        raise CaptureError(f"{place}: {SETTINGS} has do_lower_case; give the tokenizer a Lowercase normalizer instead")
    if (read_json_maybe(place, "config_sentence_transformers.json") or {}).get("default_prompt_name"):
        logger.warning("%s: has a default prompt, which is not added: put it in front of the texts", place)
    length = settings.get("max_seq_length")
    return Pooling("Normalize" in folders, folders["Transformer"], None if length is None else int(length))


def write_pooling(directory: Path, pooling: Pooling, size: int) -> None:
    """Makes the folder of a saved encoder one that sentence-transformers reads, too.

    Args:
        size: D.
    """
    names = ("Transformer", "Pooling", *(("Normalize",) if pooling.normalise else ()))
    paths = ("", POOLING, "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    config = {"word_embedding_dimension": size, "pooling_mode_mean_tokens": True}
    (directory / POOLING).mkdir()
    for path, values in (
        (directory / MODULES, modules),
        (directory / POOLING / "config.json", config),
        (directory / SETTINGS, {"max_seq_length": pooling.max_length, "do_lower_case": False}),
    ):
        path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def read_json_maybe(place: str, name: str, needs_hub: bool = False) -> Any:
    """A JSON file of a folder or hub id, None where it has none.

    Args:
        needs_hub: whether a hub id must have it.

    Raises:
        CaptureError: when it is no JSON, or the hub does not give what it must.
    """
    from transformers.utils.hub import cached_file

    path = Path(place) / name
    if not Path(place).is_dir():
        try:
            path = Path(cached_file(place, name) or path)
        except OSError as error:  # no such repository or file, or no way to the hub
            if needs_hub:
                raise CaptureError(f"{place}: cannot load a model from there: {error}") from error
            return None
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CaptureError(f"{path}: not JSON ({error}); save the model again") from error


def _check_mean(place: str, name: str) -> None:
    config = read_json_maybe(place, name) or {}
    prefix = "pooling_mode_"
    modes = {key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value is True}
    modes = modes or {str(config.get("pooling_mode", "mean"))}
    if modes not in ({"mean_tokens"}, {"mean"}):
        raise CaptureError(f"{place}: {name} asks for pooling by {', '.join(sorted(modes))}; {_ADVICE}")


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
