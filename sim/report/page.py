"""One HTML page that needs nothing else: figures as SVG, tables, and films, light or dark as the reader has it.

Knows HTML. What is shown comes from the modules beside it.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from sim.report.figures import Drawing
from sim.report.films import Film, FilmRow
from sim.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2430; --faint: #5b6675; --line: #d7dde5; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12161c; --ink: #e4e9f0; --faint: #9aa6b5; --line: #313a46; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .2rem; }
p, figcaption { color: var(--faint); font-size: .875rem; margin: .2rem 0 .6rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { fill: currentColor; font-family: system-ui, sans-serif !important; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td { white-space: pre-line; }
.numbers td, .numbers th { white-space: nowrap; }
.origin td:last-child { overflow-wrap: anywhere; }
.films { display: flex; gap: .8rem; overflow-x: auto; }
.films figure { flex: 0 0 min(16rem, 80vw); }
video { width: 100%; display: block; background: #000; }
.solved::before { content: "solved: "; color: #009e73; font-weight: 600; }
.failed::before { content: "not solved: "; color: #d55e00; font-weight: 600; }
"""


def html_page(
    title: str,
    lead: str,
    drawings: Sequence[Drawing],
    films: Sequence[FilmRow],
    tables: Sequence[Table],
    origin: Table,
) -> str:
    """The whole page. lead: a sentence under the title."""
    figures = "\n".join(_figure(drawing) for drawing in drawings)
    parts = [
        f"<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>",
        _section("Figures", f'<div class="grid">{figures}</div>'),
    ]
    if films:
        parts.append(_section("The same initial state, side by side", "\n".join(map(_film_row, films))))
    parts += [_section(table.title, _table(table, "numbers")) for table in tables if table.rows]
    parts.append(_section(origin.title, _table(origin, "origin")))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    )
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def svg_of(figure: Figure) -> str:
    """The figure as an SVG element that takes the page's colour, font and width."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    return text.replace("#000000", "currentColor").replace("stroke: black", "stroke: currentColor")


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>"


def _figure(drawing: Drawing) -> str:
    heading = f"<h3>{escape(drawing.title)}</h3>"
    return f"<figure>{heading}{svg_of(drawing.figure)}<figcaption>{escape(drawing.caption)}</figcaption></figure>"


def _table(table: Table, kind: str) -> str:
    caption = f"<p>{escape(table.caption)}</p>" if table.caption else ""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in table.headings)
    rows = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'{caption}<div class="scroll"><table class="{kind}">{body}</table></div>'


def _film_row(row: FilmRow) -> str:
    films = "".join(map(_film, row.films))
    return f'<h3>{escape(row.title)}</h3><div class="films">{films}</div>'


def _film(film: Film) -> str:
    content = base64.b64encode(film.path.read_bytes()).decode()
    source = f'<video controls muted loop playsinline preload="metadata" src="data:video/mp4;base64,{content}"></video>'
    outcome = "solved" if film.solved else "failed"
    return f'<figure>{source}<figcaption class="{outcome}">{escape(film.label)}</figcaption></figure>'
