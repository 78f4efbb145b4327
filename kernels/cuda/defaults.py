"""The specialisations that language models, associative recall and the benchmarks ask for, and the limits of each kind.

They can be compiled, and so checked, on a machine without a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .address.decode import decode_specialisation
from .layers.add import add_specialisation
from .layers.attention import attention_specialisation
from .layers.attention_step import attention_step_specialisation
from .layers.delta import delta_specialisation
from .layers.embedding import ORDER, embedding_specialisation
from .layers.few_rows import few_rows_mma_specialisation, few_rows_specialisation, few_rows_tile_specialisation
from .layers.flash_attention import flash_specialisation
from .layers.gate import gate_specialisation
from .layers.loss import loss_specialisation
from .layers.norm import norm_specialisation
from .layers.sampling import sampling_specialisation
from .layers.scale import scale_specialisation
from .layers.short_conv import short_conv_specialisation
from .layers.token_sums import token_sums_specialisation
from .layers.weight_gradient import weight_gradient_specialisation
from .memory.conflicts import conflict_specialisation
from .memory.content import content_specialisation
from .memory.couplings import coupling_specialisation
from .memory.dense import PASSES, Dense, dense_content_specialisation, dense_coupling_specialisation
from .memory.layout import H100, Layout, choose_layout
from .memory.mass_aware import mass_aware_specialisation
from .memory.mass_backward import mass_backward_specialisation
from .memory.mass_forward import mass_forward_specialisation
from .memory.plain import plain_specialisation
from .memory.renumber import RENUMBER
from .memory.retention import known_rules
from .memory.segments import segment_specialisation
from .optimizer.adamw import adamw_specialisation
from .runtime.module import Specialisation
from .sparse.numbers import NUMBERS
from .sparse.rows import ROWS
from .sparse.segment_rows import segment_specialisation as segment_rows_specialisation
from .step.step import step_specialisation

_TYPES = ("float", "double", "float16", "bfloat16")
_LAYERS = (
    gate_specialisation, scale_specialisation, short_conv_specialisation, token_sums_specialisation,
    loss_specialisation, embedding_specialisation, attention_specialisation, add_specialisation,
    sampling_specialisation, attention_step_specialisation,
)  # fmt: skip
_WAYS = "forward", "backward"
_WITHOUT_HALVES = (
    adamw_specialisation, weight_gradient_specialisation, delta_specialisation,
)  # fmt: skip


def _layouts() -> list[Layout]:
    """M = 1024 with every type, fewer and more rows, other K, and rows that cannot be loaded 16 bytes at a time."""
    layouts = [choose_layout(np.dtype(dtype), 1024, 64, 8, 8, H100) for dtype in (np.float32, np.float64, np.float16)]
    layouts.append(replace(layouts[-1], element="bfloat16"))
    layouts += [choose_layout(np.dtype(np.float32), rows, 64, 8, 8, H100) for rows in (64, 2048, 4096, 65536)]
    layouts += [choose_layout(np.dtype(np.float32), 1024, 64, k, k, H100) for k in (16, 32, 64)]
    layouts.append(choose_layout(np.dtype(np.float32), 1024, 53, 5, 11, H100))
    return layouts


def _memory() -> list[Specialisation]:
    """The chunked kernels and the plain ones; the first layout with every option."""
    layouts, rules = _layouts(), known_rules()
    first, *others = layouts
    contents = [*layouts, *(layout.widened() for layout in (*layouts[:4], *layouts[8:10]) if layout.acc_bytes == 4)]
    return [
        *(conflict_specialisation(first, update, direct=True) for update in rules),
        *(conflict_specialisation(first, rules[0], direct, gradients=False) for direct in (True, False)),
        *(conflict_specialisation(layout, rules[0], direct=False) for layout in others),
        *(coupling_specialisation(layout, f"couple_{way}") for layout in layouts for way in _WAYS),
        *(coupling_specialisation(layout, "couple_forward", gradients=False) for layout in layouts),
        *(content_specialisation(layout, renumbered) for layout in contents for renumbered in (False, True)),
        *(mass_forward_specialisation(layout, False, True, False) for layout in layouts),
        mass_forward_specialisation(first, mass_aware=True, in_shared=True, renumbered=False),
        mass_forward_specialisation(first, False, True, False, gradients=False),
        mass_forward_specialisation(first, mass_aware=True, in_shared=False, renumbered=True),
        *(mass_forward_specialisation(layout, False, True, False, segmented=True) for layout in layouts[:2]),
        *(mass_backward_specialisation(first, update, False, True) for update in rules),
        *(mass_backward_specialisation(layout, rules[0], False, True) for layout in others),
        *(mass_backward_specialisation(first, rules[0], True, in_shared) for in_shared in (True, False)),
        *(
            mass_backward_specialisation(layout, rules[0], False, True, True, local_only)
            for layout in layouts[:2]
            for local_only in (False, True)
        ),
        *(mass_aware_specialisation(layout) for layout in layouts[:4]),
        *(segment_specialisation(layout) for layout in layouts),
        RENUMBER,
        *(plain_specialisation(np.dtype(dtype), 64, rules[0], False) for dtype in (np.float64, np.float16)),
        *(plain_specialisation(np.dtype(np.float32), 64, update, aware) for update in rules for aware in (False, True)),
    ]


def _dense() -> list[Specialisation]:
    """Few slots: K 8 and 16, every type with sums in float32, one warp and sixteen."""
    shapes = [("float32", 64, 32, 16), ("float16", 32, 64, 8), ("float32", 64, 128, 16), ("float32", 13, 4, 8)]
    found = []
    for dtype, slots, channels, top_k in shapes:
        layout = choose_layout(np.dtype(dtype), slots, channels, top_k, top_k, H100)
        found.append(Dense(layout, slots, channels))
    found.append(replace(found[1], layout=replace(found[1].layout, element="bfloat16")))
    couplings = [dense_coupling_specialisation(dense, f"dense_couple_{way}") for dense in found for way in _WAYS]
    return list(dict.fromkeys(couplings)) + [
        dense_content_specialisation(dense, name) for dense in found for name in list(PASSES)[:2]
    ]


def _few_rows() -> list[Specialisation]:
    """One sequence and many, plain and gated, of every type; rows that cannot be loaded 16 bytes at a time."""
    return [
        few_rows_mma_specialisation("bfloat16", 1, 6, 6),
        few_rows_mma_specialisation("bfloat16", 2, 2, 2, norm=True),
        few_rows_mma_specialisation("bfloat16", 6, 2, 2, norm=True, gated=True),
        few_rows_mma_specialisation("float16", 2, 9, 4),
        few_rows_mma_specialisation("float16", 6, 2, 2, gated=True),
        few_rows_mma_specialisation("float16", 1, 2, 1, wide=False),
        few_rows_tile_specialisation("bfloat16", 2816, 64, 8, 8, 6),
        few_rows_tile_specialisation("bfloat16", 1024, 64, 8, 1, 6, norm=True, gated=True),
        few_rows_tile_specialisation("bfloat16", 1024, 128, 12, 1, 7, norm=True, gated=True),
        few_rows_tile_specialisation("bfloat16", 2816, 128, 12, 4, 7),
        few_rows_tile_specialisation("bfloat16", 513, 64, 2, 2, 5, norm=True),
        few_rows_tile_specialisation("float16", 513, 64, 2, 2, 5),
        few_rows_tile_specialisation("float16", 1024, 64, 8, 1, 6, gated=True),
        few_rows_specialisation("float", 1),
        few_rows_specialisation("float", 16, gated=True),
        few_rows_specialisation("double", 16, wide=False),
    ]


def _steps() -> list[Specialisation]:
    """One token: every type and update rule, the plain step, odd and large sizes."""
    pdma = known_rules()[0]
    return [
        *(step_specialisation(element, 5, 4, 8, 8, 64, pdma) for element in _TYPES),
        *(step_specialisation(element, 5, 4, 8, 65, 64, pdma) for element in _TYPES),
        *(
            step_specialisation("float", 5, 4, 8, reads, 64, update)
            for reads in (8, 65)
            for update in known_rules()[1:]
        ),
        *(
            step_specialisation(element, 5, 4, 8, 8, 64, pdma, "double" if element == "double" else "float")
            for element in _TYPES
        ),
        *(step_specialisation(element, 5, 4, 8, 8, 64, pdma, "bfloat16") for element in _TYPES if element != "double"),
        step_specialisation("float", 15, 4, 32, 8, 53, pdma, "float"),
        step_specialisation("float", 15, 4, 32, 8, 53, pdma, "bfloat16"),
        step_specialisation("float", 5, 4, 5, 11, 53, pdma),
        step_specialisation("float", 5, 4, 32, 32, 128, pdma),
        step_specialisation("float", 8, 4, 64, 64, 64, pdma),
        step_specialisation("double", 2, 64, 64, 64, 64, pdma),
        step_specialisation("float", 1, 1, 1, 1, 1, pdma),
    ]


DEFAULT_SPECIALISATIONS: list[Specialisation] = [
    *(decode_specialisation(logit, 5, 4, top_k) for logit in _TYPES for top_k in (8, 64)),
    *(decode_specialisation("float", 5, 4, top_k) for top_k in (16, 32)),
    *(decode_specialisation("float", order, radix, 8) for order, radix in ((8, 4), (10, 2), (3, 5))),
    decode_specialisation("float", 2, 32, 32),
    decode_specialisation("double", 2, 16, 16),
    *dict.fromkeys(_memory()),
    *_dense(),
    *_steps(),
    ROWS,
    NUMBERS,
    *(segment_rows_specialisation(row) for row in ("float", "double", "bfloat16")),
    *_few_rows(),
    *(norm_specialisation(element, layernorm) for element in _TYPES for layernorm in (False, True)),
    *(of_type(element) for element in _TYPES for of_type in _LAYERS),
    *(flash_specialisation(element, d, d) for element, d in (("bfloat16", 64), ("bfloat16", 128), ("float16", 64))),
    ORDER,
    *(of_type(element) for element in ("float", "double") for of_type in _WITHOUT_HALVES),
]
