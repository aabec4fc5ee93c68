"""Post-training quantisation of a converted segment to int8, by NNCF. Imports nncf only to build.

What is quantised are the products of token vectors with weights: per channel, symmetric weights and one scale
per activation, which is what VNNI, AMX and dot-product instructions multiply. Nothing else is: importance, top-k,
gathers, pooling, entropy, norms, softmax and attention keep the precision they had, and so do exit heads, pooler and
classifier, which multiply one row per example and have no time to give.

An x86 CPU without VNNI sums two products in 16 bits, where eight-bit weights overflow: there they have seven bits
(NNCF's "overflow fix").

SmoothQuant is as NNCF does by default for Transformers. Bias correction is off: it is the slow part, and where it
was tried the answers agreed no better with fp32.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import platform
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from mpcompile.contract.backend import Samples
from mpcompile.errors import BackendError

if TYPE_CHECKING:
    import openvino

_WIDE = ("avx512_vnni", "avx_vnni", "amx_int8")
"""Names of Linux for instructions that multiply eight-bit numbers and sum in 32 bits."""

MISSING = 'precision "int8": nncf, which quantises, is not installed: pip install "mpcompile[int8]"'


def find_quantiser() -> str:
    """Name and version of what quantises: another one gives other plans.

    Raises:
        BackendError: when it is not installed.
    """
    if importlib.util.find_spec("nncf") is None:
        raise BackendError(MISSING)
    return f"nncf {metadata.version('nncf')}"


def quantise(model: openvino.Model, samples: Samples | None, name: str) -> openvino.Model:
    """Quantises a model; the same samples give the same one.

    Args:
        model: named inputs; changed by it.
        samples: inputs to calibrate on.
        name: of the segment, for errors.

    Raises:
        BackendError: when there are no samples, nncf is not installed or fails.
    """
    if not samples:
        raise BackendError(
            f"{name}, precision 'int8': no samples to calibrate on; give texts, or choose precision 'f32' or 'bf16'"
        )
    find_quantiser()
    import nncf

    with _silence():
        try:
            return nncf.quantize(
                model,
                nncf.Dataset([dict(sample) for sample in samples]),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(samples),
                ignored_scope=_ignored(model),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    disable_bias_correction=True,
                    overflow_fix=None if sums_wide() else nncf.OverflowFix.ENABLE,
                ),
            )
        except Exception as error:  # nncf raises its own kinds, and passes OpenVINO's and numpy's on
            raise BackendError(f"{name}: nncf could not quantise it: {error}") from error


def sums_wide(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU sums products of eight-bit numbers in 32 bits; an x86 CPU that nothing is known of does not."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        words = set(cpuinfo.read_text("utf-8").split())
    except OSError:
        return False
    return not words.isdisjoint(_WIDE)


def _ignored(model: openvino.Model) -> object:
    """The operations that are not quantised: all but products of a row per token."""
    import nncf

    operations = model.get_ordered_ops()
    types = {operation.get_type_name() for operation in operations} - {"MatMul", "Constant", "Parameter", "Result"}
    pooled = [
        operation.get_friendly_name()
        for operation in operations
        if operation.get_type_name() == "MatMul" and operation.get_output_partial_shape(0).rank.get_length() == 2
    ]
    return nncf.IgnoredScope(types=sorted(types), names=pooled, validate=False)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silences nncf: its log, its progress bars, and the warnings of the libraries that it uses."""
    # NOTE: the logger is of nncf's own class, so that nncf has to be imported before the logger is asked for.
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
