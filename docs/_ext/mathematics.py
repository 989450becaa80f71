"""Mathematics as MathML, which browsers draw themselves: no script and no network."""

from __future__ import annotations

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError


def as_mathml(text, block):
    if block and "\\\\" in text and "\\begin{" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    try:
        return tex2mathml(text, as_block=block)
    except MathError as error:
        raise ExtensionError(f"{error} in the formula {text!r}") from error


def inline(translator, node):
    translator.body.append(as_mathml(node.astext(), block=False))
    raise nodes.SkipNode


def displayed(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({node["number"]})</span>')
    translator.body.append(as_mathml(node.astext(), block=True))
    translator.body.append("</div>")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (inline, None), (displayed, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
