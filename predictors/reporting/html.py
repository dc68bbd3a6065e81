"""The pieces of HTML that a report is made of, and its style. They are XML too."""

import re
from collections.abc import Sequence

from engine.plot.canvas import safe
from engine.statistics import wilson_interval

CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 20px 64px;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:0 0 .3rem}
p{margin:.5rem 0}
.lead{font-size:1.08rem}
.quiet,figcaption{color:var(--quiet);font-size:.9rem}
.notes{columns:26rem 2;column-gap:32px;margin:.5rem 0}
.notes p{margin:0}
figcaption{margin-top:.4rem}
.grid{display:grid;grid-template-columns:minmax(0,1fr);gap:28px 32px;align-items:start}
.grid>*{min-width:0}
figure{margin:0}
svg{display:block;width:100%;height:auto;font-family:inherit}
.budgets{display:flex;flex-wrap:wrap;gap:12px;margin:1rem 0;padding:0;list-style:none}
.budgets li{flex:1 1 19rem;background:var(--panel);border-left:3px solid var(--chosen);padding:.6rem .8rem}
.wide{container-type:inline-size;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .8rem .38rem 0;text-align:right;border-bottom:1px solid var(--grid);vertical-align:top}
th:last-child,td:last-child{padding-right:0}
td{white-space:nowrap}
th{color:var(--quiet);font-weight:500;overflow-wrap:break-word}
th[scope=row]{text-align:left;color:var(--ink);font-weight:600;overflow-wrap:anywhere;
min-width:7rem}
thead th{vertical-align:bottom}
thead th:first-child{text-align:left}
small{display:block;font-weight:400;color:var(--quiet);font-size:.84em}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.key{display:inline-block;width:1.1em;height:.9em;margin:0 .35em 0 .9em;vertical-align:-.08em}
summary{cursor:pointer;color:var(--quiet);font-size:.9rem;margin-top:.4rem}
@media(min-width:760px){.two,.three{grid-template-columns:repeat(2,minmax(0,1fr))}
.one{max-width:620px}}
@media(min-width:1080px){.three{grid-template-columns:repeat(3,minmax(0,1fr))}}
@media(max-width:520px){main{padding:16px 14px 48px}h1{font-size:1.4rem}table{font-size:.84rem}
th,td{padding-right:.55rem}}
@media print{main{max-width:none;padding:0}figure,article,tr,li{break-inside:avoid}table{font-size:.75rem}}
"""

# Where a table has no room, each of its rows becomes a heading with named values under it.
STACKED = """table,tbody,tr,td{display:block}thead{display:none}
tr{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.4rem,1fr));gap:.1rem .8rem;padding:.5rem 0;
border-bottom:1px solid var(--grid)}
th,td{padding:0;border:0;text-align:left;white-space:normal}th[scope=row]{display:block;grid-column:1/-1;min-width:0}
td.none{display:none}td::before{content:attr(data-name);display:block;color:var(--quiet);font-size:.84em}
"""
CHARACTER = 8.2  # pixels of a character of a table, about
GAP = 13  # pixels between two columns
# Widths of the container in pixels from which on a table is not stacked; a table takes the first that it
# fits. The last is wider than any container: such a table is always stacked.
WIDTHS = (350, 500, 680, 860, 1040, 99_999)
MOST_NAME = 24  # characters of a row's name that are kept in one line if that is possible
DASH = "–"  # the cell of what is not known


def html_cell(text: str, *small: str) -> str:
    """A cell of a table: a line of text, and lines in small print under it."""
    lines = [f"<small>{safe(line)}</small>" for line in small]
    return safe(text) + "".join(lines)


def measured_cell(accuracy: float | None, images: int) -> str:
    """Accuracy with its 90% interval; a dash where it was not measured."""
    if accuracy is None:
        return DASH
    low, high = wilson_interval(accuracy, images)
    return html_cell(f"{100 * accuracy:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}")


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first cell of each row is its name.

    It never scrolls sideways: where it has no room, each row becomes a heading with its values under it.
    """
    head = "".join(f'<th role="columnheader" scope="col">{safe(text)}</th>' for text in heads)
    body = "".join(_table_row(heads, row) for row in rows)
    # A table that is shown as blocks is no table for screen readers, unless it says so.
    return (
        f'<div class="wide"><table role="table" class="{_width_class(heads, rows)}"><thead role="rowgroup">'
        f'<tr role="row">{head}</tr></thead><tbody role="rowgroup">{body}</tbody></table></div>'
    )


def _table_row(heads: Sequence[str], cells: Sequence[str]) -> str:
    row = f'<th role="rowheader" scope="row">{cells[0]}</th>'
    for head, cell in zip(heads[1:], cells[1:], strict=True):
        # A row that is stacked leaves out what is not known.
        look = ' class="none"' if cell == DASH else ""
        row += f'<td role="cell"{look} data-name="{safe(head)}">{cell}</td>'
    return f'<tr role="row">{row}</tr>'


def _width_class(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The class of a table: how wide its container must be to show it as a table."""
    needed = 0.0
    for column, head in enumerate(heads):
        # Heads and names of rows may break between words; values do not break.
        longest = max(map(len, re.split("[ -]", head)))
        for row in rows:
            lines = re.sub("<[^>]*>", "\n", row[column]).split("\n")
            if column == 0:
                longest = max(longest, min(max(map(len, lines)), MOST_NAME))
            else:
                longest = max(longest, *map(len, lines))
        needed += longest * CHARACTER + GAP
    for width in WIDTHS:
        if needed <= width:
            return f"w{width}"
    return f"w{WIDTHS[-1]}"


def stacked_css() -> str:
    """The style of tables that have no room."""
    rules = []
    for width in WIDTHS:
        selectors = []
        for rule in STACKED.replace("\n", "").split("}")[:-1]:
            names, _, look = rule.partition("{")
            scoped = [f".w{width}" if name == "table" else f".w{width} {name}" for name in names.split(",")]
            selectors.append(f"{','.join(scoped)}{{{look}}}")
        rules.append(f"@container (max-width:{width}px){{{''.join(selectors)}}}")
    return "\n".join(rules)


def html_grid(parts: Sequence[str]) -> str:
    """Parts beside each other, up to three on a wide screen, so that no row is nearly empty."""
    if len(parts) == 1:
        columns = "one"
    else:
        columns = "two" if len(parts) % 3 == 1 or len(parts) == 2 else "three"
    return f'<div class="grid {columns}">' + "\n".join(parts) + "</div>"


def small_print(html: str) -> str:
    """A paragraph in smaller grey print."""
    return f'<p class="quiet">{html}</p>'


def notes(html: str) -> str:
    """How to read a table: small print in two columns, since longer lines are hard to read."""
    return f'<div class="notes">{small_print(html)}</div>'
