"""Formulas as MathML, which browsers draw themselves: no script and nothing from another site."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert

NAMESPACE = "http://www.w3.org/1998/Math/MathML"
BARS, PRIME, MINUS, FENCES = ("\u00af", "\u2015"), "\u2032", "\u2212", ("|", "\u2016")
CLOSING = (")", "]", "\u230b", PRIME, *FENCES)
FUNCTIONS = ("ln", "log", "exp", "sin", "cos", "min", "max")
OPERATOR = re.compile("(?!mod$)[A-Za-z]{2,}")
NAMES = ("mi", "mn", "msub", "msup", "msubsup", "mover", "mfrac", "msqrt")


def mathml(formula: str, display: str = "inline") -> str:
    r"""LaTeX as MathML. latex2mathml knows \argmax and \argmin, but not \arg alone."""
    ElementTree.register_namespace("", NAMESPACE)
    converted = convert(re.sub(r"\\arg\s*\\(max|min)", r"\\arg\1", formula), display=display)
    root = ElementTree.fromstring(converted)
    for node in root.iter():
        tidy(node)
    return ElementTree.tostring(root, encoding="unicode")


def tidy(node: ElementTree.Element) -> None:
    """What latex2mathml leaves too far apart: bars, primes, names of functions, signs, norms."""
    kind, children = kind_of(node), list(node)
    if kind == "mover" and children[1].text in BARS:
        node.set("accent", "true")  # close to what it is over
        children[1].text = "\u203e"  # a line that grows with it
        children[1].set("stretchy", "true")
    elif kind == "msup" and children[1].text == PRIME:  # the font's prime is small and high already
        node.tag = f"{{{NAMESPACE}}}mrow"
        children[1].tag = f"{{{NAMESPACE}}}mo"
        spaced(children[1], "0", "0", form="postfix")
    for i, child in enumerate(children):
        before, after = (children[i - 1] if i else None), (children[i + 1] if i + 1 < len(children) else None)
        core = core_of(child)
        if core.text in FENCES:
            spaced(core, "0", "0", form="prefix", stretchy="false")
        elif core.text == MINUS and before is not None and kind_of(before) == "mo" and before.text not in CLOSING:
            core.set("form", "prefix")  # a sign, not a difference
        elif core.text in FUNCTIONS or (kind_of(core) == "mo" and OPERATOR.fullmatch(core.text or "")):
            core.tag = f"{{{NAMESPACE}}}mo"
            thin = [before is not None and kind_of(before) in NAMES, after is not None and kind_of(after) in NAMES]
            spaced(core, *("0.167em" if beside else "0" for beside in thin))
        elif core.text == "\u27fa":
            spaced(core, "0.5em", "0.5em")
        elif core.text in ("(", ")") and not core.attrib:
            core.set("stretchy", "false")  # around mod M, beside a brace


def kind_of(node: ElementTree.Element) -> str:
    return node.tag.removeprefix(f"{{{NAMESPACE}}}")


def core_of(node: ElementTree.Element) -> ElementTree.Element:
    """What carries an index or a power."""
    return node[0] if kind_of(node) in ("msub", "msup", "msubsup") else node


def spaced(operator: ElementTree.Element, left: str, right: str, **attributes: str) -> None:
    operator.attrib.update(attributes, lspace=left, rspace=right)


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
