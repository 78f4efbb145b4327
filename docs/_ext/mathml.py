"""Formulas as MathML, which browsers draw themselves: no script and nothing from another site."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def mathml(formula: str, display: str = "inline") -> str:
    r"""LaTeX as MathML. latex2mathml knows \argmax and \argmin, but not \arg alone."""
    return convert(re.sub(r"\\arg\s*\\(max|min)", r"\\arg\1", formula), display=display)


def visit_inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="math notranslate">{mathml(node.astext())}</span>')
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    formula = mathml(node.astext(), display="block")
    translator.body.append(f'<div class="math notranslate" tabindex="0">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
