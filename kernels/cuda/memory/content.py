"""The contents of the slots, forward and backward: the launches of ``content.cu``."""

from __future__ import annotations

import functools
from typing import Any

from ..runtime.module import Launch, Specialisation
from ..runtime.params import INT, POINTER, ParamStruct
from .call import Call, Kept, Segments
from .layout import THREADS, Layout, layout_of_contents, processors, shared_memory

PASSES = ("content_forward", "content_backward_recompute", "content_backward", "content_backward_both")

CONTENT = ParamStruct(
    "ContentParams",
    records=POINTER, values=POINTER, dy=POINTER, before_heavy=POINTER, after_heavy=POINTER, given=POINTER,
    working=POINTER, final_state=POINTER, dstate=POINTER, y=POINTER, dv=POINTER, dy_dot_s=POINTER, d_dot_v=POINTER,
    final_q=POINTER, spans=POINTER, tokens=INT, heads=INT, channels=INT, rows=INT, all_chunks=INT, segments=INT,
    chunks_of_segment=INT,
    first_segment=INT, launched_segments=INT, local_only=INT, one_state=INT,
)  # fmt: skip
"""``ContentParams`` of content.cu, which says what each is."""


@functools.cache
def content_specialisation(layout: Layout, renumbered: bool) -> Specialisation:
    """``content.cu`` for a layout."""
    defines = (
        *layout.defines, ("CHANNELS", layout.channels), ("WHOLE", int(layout.whole)), ("ALIGNED", int(layout.aligned)),
        ("IN_SHARED", int(layout.in_shared)), ("LAZY_ZERO", int(renumbered and not layout.in_shared)),
        ("BYTES_BEFORE_ROWS", layout.bytes_before_rows), ("BLOCKS", layout.blocks),
    )  # fmt: skip
    return Specialisation("memory/content.cu", PASSES, defines, (CONTENT,))


@functools.lru_cache(maxsize=1024)
def _launch(layout: Layout, renumbered: bool, name: str, rows: int, blocks: int) -> Launch:
    specialisation = content_specialisation(layout, renumbered)
    return Launch(specialisation, name, (blocks,), THREADS, layout.content_bytes(rows))


def content_pass(
    name: str,
    call: Call,
    layout: Layout,
    kept: Kept,
    segments: Segments,
    *,
    skip_first: int = 0,
    skip_last: int = 0,
    local_only: bool = False,
    one_state: bool = False,
    **arrays: Any,
) -> None:
    """Launch the pass ``name``, one of PASSES, over all tokens.

    ``skip_first``, ``skip_last``: how many segments to leave out at the start and at the end.
    ``local_only``: a segment whose start (backward: end) is not known yet leaves only the state that it makes of zeros.
    ``one_state``: all segments go on with one and the same state, which they are launched one after another for.
    ``arrays``: the pass's own, by their names in ``ContentParams``; those of other passes are null.
    """
    _, T, H, C = call.values.shape
    launched = segments.contents - skip_first - skip_last
    sequences = call.sequences * (2 if name == "content_backward_both" else 1)
    device = call.values.device.id
    layout = layout_of_contents(layout, C, call.rows, sequences * launched, processors(device), shared_memory(device))
    blocks = sequences * launched * layout.slices
    _launch(layout, call.renumbered, name, call.rows, blocks)(
        CONTENT(
            **_NO_ARRAYS | arrays, records=kept.records, values=call.values,
            spans=call.packed and call.packed.spans, tokens=T, heads=H, channels=C, rows=call.rows_of_state,
            all_chunks=kept.all_chunks, segments=segments.contents, chunks_of_segment=segments.chunks,
            first_segment=skip_first, launched_segments=launched, local_only=local_only,
            one_state=one_state,
        )
    )  # fmt: skip


_NO_ARRAYS = dict.fromkeys(
    ("dy", "before_heavy", "after_heavy", "given", "working", "final_state", "dstate", "y", "dv", "dy_dot_s", "d_dot_v",
     "final_q")
)  # fmt: skip
