"""Mathematics as MathML, which browsers draw themselves: no script and no network."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import ExtensionError

SPACE = "http://www.w3.org/1998/Math/MathML"
ET.register_namespace("", SPACE)
ACCENTS = set("\u02d9\u00a8\u02c6\u02c9\u00af\u02dc~^\u2192\u02c7\u02d8\u00b4`")


def with_indices_beside(mathml):
    """Set the indices of letters with accents beside them: docutils sets them below and above.

    ``\\dot s_i`` is its ``munderover(s, i, dot)``, and becomes ``msub(mover(s, dot), i)``.
    """

    def name(tag):
        return f"{{{SPACE}}}{tag}"

    # Spaces come as entities that HTML knows and XML does not.
    root = ET.fromstring(re.sub(r"&(?!lt;|gt;|amp;)\w+;", lambda m: html.unescape(m[0]), mathml))
    for parent in list(root.iter()):
        for k, node in enumerate(parent):
            if node.tag != name("munderover") or (node[2].text or "").strip() not in ACCENTS:
                continue
            base, index, accent = node
            letter = ET.Element(name("mover"), {"accent": "true"})
            letter.extend((base, accent))
            if parent.tag == name("msup") and k == 0:
                parent.tag, parent[:1] = name("msubsup"), [letter, index]
            else:
                parent[k] = beside = ET.Element(name("msub"))
                beside.extend((letter, index))
    return ET.tostring(root, encoding="unicode")


def as_mathml(text, block):
    if block and "\\\\" in text and "\\begin{" not in text:
        text = rf"\begin{{aligned}}{text}\end{{aligned}}"
    try:
        return with_indices_beside(tex2mathml(text, as_block=block))
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
