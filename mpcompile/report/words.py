"""The kept words of sample texts as plain HTML: a row per layer that drops some, readable without hovering."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from mpcompile.contract.operating_point import BEFORE
from mpcompile.report.records import SampleText, SampleToken

_GONE = "·"


def render_samples(samples: Sequence[SampleText], num_layers: int) -> str:
    """An article per text.

    Args:
        samples: texts, traced.
        num_layers: of the original.
    """
    return "\n".join(render_sample(sample, num_layers) for sample in samples)


def render_sample(sample: SampleText, num_layers: int) -> str:
    """One text: where it left and with which answer, then what each layer kept of it."""
    agrees = sample.answer == sample.original_answer if sample.agrees is None else sample.agrees
    sure = "" if sample.score is None else f"{100 * sample.score:.0f}% "
    original = "as the original" if agrees else f"original: {escape(sample.original_answer)}"
    header = (
        f'<span class="exit">{escape(_describe_exit(sample.exit_layer, num_layers))}</span> '
        f"<b>{escape(sample.answer)}</b> {sure}"
        f'<span class="{"agrees" if agrees else "differs"}">{original}</span>'
    )
    drops = sorted({token.dropped_in for token in sample.tokens if token.dropped_in is not None})
    rows = [_row("read", f"{len(sample.tokens)} tokens", _render_tokens(sample, None))]
    for layer in drops:
        entered = sum(token.dropped_in is None or token.dropped_in >= layer for token in sample.tokens)
        kept = entered - sum(token.dropped_in == layer for token in sample.tokens)
        rows.append(_row(f"layer {layer + 1}", f"keeps {kept} of {entered}", _render_tokens(sample, layer)))
    return f'<article class="sample"><header>{header}</header><ol>{"".join(rows)}</ol></article>'


def _describe_exit(exit_layer: int, num_layers: int) -> str:
    if exit_layer == BEFORE:
        return "exit before the model"
    if exit_layer == 0:
        return "exit after the embeddings"
    if exit_layer == num_layers:
        return f"ran all {num_layers} layers"
    return f"exit after layer {exit_layer} of {num_layers}"


def _row(label: str, count: str, text: str) -> str:
    return f'<li><div class="layer">{label} <small>{count}</small></div><p dir="auto">{text}</p></li>'


def _render_tokens(sample: SampleText, layer: int | None) -> str:
    """The text with what a layer keeps, what it drops, and a dot for what was dropped before it."""
    parts = []
    for state, group in itertools.groupby(sample.tokens, key=lambda token: _state(token, layer)):
        tokens = list(group)
        # The gap belongs to neither side: a mark or a line through it would join two words.
        gap = " " if tokens[0].is_special else escape(tokens[0].before)
        parts.append(f"{gap}{_render_group(state, tokens)}")
        if tokens[-1].is_special:
            parts.append(" ")
    if sample.is_truncated and layer is None:
        parts.append(' <span class="special">(the text goes on; the model reads no further)</span>')
    return "".join(parts).strip()


def _state(token: SampleToken, layer: int | None) -> tuple[str, bool]:
    """What became of a token at a layer, and whether it is special."""
    if layer is None:
        return "read", token.is_special
    if token.dropped_in is not None and token.dropped_in < layer:
        return "gone", False
    return "dropped" if token.dropped_in == layer else "kept", token.is_special


def _render_group(state: tuple[str, bool], tokens: Sequence[SampleToken]) -> str:
    name, is_special = state
    if name == "gone":
        return f' <span class="special">{_GONE}</span> '
    if is_special:
        text = escape(" ".join(token.text for token in tokens))
        inner = f"<del>{text}</del>" if name == "dropped" else text
        return f'<span class="special">{inner}</span>'
    text = escape(tokens[0].text + "".join(token.before + token.text for token in tokens[1:]))
    if not text:
        return ""
    return {"kept": f"<mark>{text}</mark>", "dropped": f"<del>{text}</del>", "read": text}[name]
