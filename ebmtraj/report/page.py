"""One HTML page that needs nothing else: its parts as text, every picture inside, light or dark as the reader has it."""

from __future__ import annotations

import base64
import html
import io
import re
import zlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ebmtraj.report.style import GREY, INK, LOOKS

DOTS = 110  # dots an inch of charts that are PNGs
MEDIA = {".png": "image/png", ".gif": "image/gif", ".jpg": "image/jpeg", ".mp4": "video/mp4"}

CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#222;--soft:#5c6068;--line:#e2e4e8;--axis:#b0b0b0;--tile:#f4f4f0;
--best:#dcefe3;--link:#00588c;--c0:#0072b2;--c1:#6a3d9a;--c2:#7f3b08;--c3:#8c8c00;--grey:#8a8a8a}
@media(prefers-color-scheme:dark){:root{--paper:#15171b;--ink:#e8e8e4;--soft:#a3a8b1;--line:#2d3138;--axis:#5b616b;
--tile:#20242a;--best:#1d3d2b;--link:#7cc0ee;--c0:#4aa8e0;--c1:#a98bd6;--c2:#c98550;--c3:#bcbc3c;--grey:#8f959e}}
*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;max-width:1000px;
padding:0 1rem}
h1{font-size:1.7rem;line-height:1.25;margin-bottom:.2rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin-top:2.4rem;border-bottom:1px solid var(--line)}h3{font-size:1.05rem;margin-bottom:.3rem}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem;margin:.4rem 0}
td,th{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
caption{text-align:left;font-weight:600;padding:.3rem 0}th{white-space:pre-line}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.best{background:var(--best);font-weight:600}
.tiles{display:flex;flex-wrap:wrap;gap:.7rem;margin:1rem 0}.tile{background:var(--tile);border-radius:8px;
padding:.6rem 1rem;min-width:8rem;flex:0 1 auto;max-width:100%}.tile b{display:block;font-size:1.3rem}
.tile span{color:var(--soft);font-size:.85rem}
small{color:var(--soft);font-weight:400}figure{margin:1rem 0;overflow-x:auto}figcaption{color:var(--soft);font-size:.9rem}
img,video,svg.chart{max-width:100%;height:auto;border-radius:6px}img,video{background:#fff;display:block}
svg.chart{fill:currentColor;min-width:34rem}svg.chart *{stroke-linejoin:round;stroke-linecap:butt}
img.pixels{image-rendering:pixelated}
.side{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:0 1.2rem}
code,pre{font:.86rem/1.45 ui-monospace,monospace}code{overflow-wrap:anywhere}
pre{background:var(--tile);border-radius:8px;padding:.7rem 1rem;overflow-x:auto}
p.lead{font-size:1.08rem}p.note{color:var(--soft);font-size:.9rem}summary{cursor:pointer;margin:.5rem 0}a{color:var(--link)}
@media print{body{max-width:none;margin:0}details{break-inside:avoid}}
"""
# Nothing may be fetched, and nothing runs: a report can be sent on and opened anywhere.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_THEMED = {  # colours of the house style, and what they are in either light
    INK: "currentColor",
    GREY: "var(--grey)",
    "#e4e4e4": "var(--line)",
    "#b0b0b0": "var(--axis)",
    LOOKS["ebm"].color: "var(--c0)",
    LOOKS["gru"].color: "var(--c1)",
    LOOKS["mdn"].color: "var(--c2)",
    LOOKS["flow"].color: "var(--c3)",
}


def document(title: str, body: Iterable[str]) -> str:
    """A whole page with this title and these parts."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(title)}</title><style>{CSS}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def text(value: Any) -> str:
    """A value as text that is safe in a page."""
    return html.escape(str(value))


def note(value: str) -> str:
    """A remark, smaller than the text."""
    return f"<p class=note>{text(value)}</p>"


def pre(value: str) -> str:
    """Lines as they stand."""
    return f"<pre>{text(value)}</pre>"


def details(summary: str, inner: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{text(summary)}</summary>{inner}</details>"


def tiles(facts: Iterable[tuple[str, str]]) -> str:
    """Figures with what they mean below, side by side."""
    each = (f'<div class="tile"><b>{text(figure)}</b><span>{text(what)}</span></div>' for figure, what in facts)
    return f'<div class="tiles">{"".join(each)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int | Collection[int] = 1, caption: str = "") -> str:
    """A table whose first `words` columns, or those named, are words, the others numbers; `**so**` is the best of a row."""
    worded = range(words) if isinstance(words, int) else words

    def cell(value: str, i: int, tag: str) -> str:
        best = value.startswith("**") and value.endswith("**") and len(value) > 4
        names = " ".join(name for name, yes in (("n", i not in worded), ("best", best)) if yes)
        shown = f' class="{names}"' if names else ""
        first, _, more = (value.strip("*") if best else value).partition("\n") if tag == "td" else (value, "", "")
        return f"<{tag}{shown}>{text(first)}{f'<br><small>{text(more)}</small>' if more else ''}</{tag}>"

    def line(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(cell(value, i, tag) for i, value in enumerate(cells))}</tr>"

    above = f"<caption>{text(caption)}</caption>" if caption else ""
    return f"<div class=wide><table>{above}{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table></div>"


def terminal_tables(shown: Table | Group | Sequence[Table] | None) -> str:
    """Tables that were made for the terminal."""
    if shown is None:
        return ""
    if isinstance(shown, Group):
        shown = [one for one in shown.renderables if isinstance(one, Table)]
    return "".join(_terminal_table(one) for one in ([shown] if isinstance(shown, Table) else shown))


def _terminal_table(shown: Table) -> str:
    columns = [list(column.cells) for column in shown.columns]
    rows = [[_cell(value) for value in row] for row in zip(*columns, strict=True)]
    words = [i for i, column in enumerate(shown.columns) if column.justify != "right"]
    return table([str(column.header) for column in shown.columns], rows, words, str(shown.title or ""))


def _cell(value: Any) -> str:
    said = value.plain if isinstance(value, Text) else str(value)
    return f"**{said}**" if isinstance(value, Text) and "bold" in str(value.style) else said


def image(data: bytes, label: str, kind: str = "image/png", *, pixels: bool = False) -> str:
    """A picture as part of the page; `pixels`: enlarged without smoothing."""
    shown = " class=pixels" if pixels else ""
    return f'<img{shown} alt="{text(label)}" src="data:{kind};base64,{base64.b64encode(data).decode()}">'


def media(path: Path, label: str, caption: str = "") -> str:
    """A picture or film from a file as part of the page."""
    kind, data = MEDIA[path.suffix.lower()], path.read_bytes()
    if kind.startswith("video"):
        source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
        inner = f'<video controls autoplay loop muted playsinline aria-label="{text(label)}" src="{source}"></video>'
    else:
        inner = image(data, label, kind)
    return captioned(inner, caption)


def captioned(inner: str, caption: str = "") -> str:
    """A picture with a line below."""
    return f"<figure>{inner}{f'<figcaption>{text(caption)}</figcaption>' if caption else ''}</figure>"


def picture(page: Image.Image, label: str, *, pixels: bool = False) -> str:
    """A PIL picture as part of the page."""
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return image(buffer.getvalue(), label, pixels=pixels)


def plot(figure: Figure, label: str) -> str:
    """A chart as a PNG, for those with so many marks that an SVG would be larger."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS, metadata={"Software": None})
    return image(buffer.getvalue(), label)


def chart(figure: Figure, label: str) -> str:
    """A chart as SVG in the page, in the page's own colours; the same text each time."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    found = buffer.getvalue()
    found = re.sub(r"<metadata>.*?</metadata>", "", found[found.index("<svg") :], flags=re.DOTALL)
    found = re.sub(r"<style.*?</style>", "", found, flags=re.DOTALL)  # it would hold for the whole page
    own = f"f{zlib.crc32(label.encode()):x}-"  # several charts, one page
    found = re.sub(r'(\bid="|href="#|url\(#)', lambda match: match[1] + own, found)
    for color, themed in _THEMED.items():
        found = found.replace(color, themed)
    return found.replace("<svg ", f'<svg class=chart role="img" aria-label="{text(label)}" ', 1)
