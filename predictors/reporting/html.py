"""The pieces of HTML that a report is made of, and its style. They are XML too."""

from collections.abc import Iterable, Sequence

from engine.plot.canvas import safe

CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:0 0 .3rem;overflow-wrap:anywhere}
p{max-width:75ch;margin:.5rem 0}
.lead{font-size:1.08rem}
.quiet,figcaption{color:var(--quiet);font-size:.9rem}
figcaption{margin-top:.4rem}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:28px 32px;
align-items:start}
.grid>*{min-width:0;max-width:560px}
figure{margin:0}
svg{display:block;width:100%;height:auto;font-family:inherit}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.38rem .8rem .38rem 0;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--grid);vertical-align:top}
th{color:var(--quiet);font-weight:500}
th[scope=row]{text-align:left;color:var(--ink);font-weight:600;position:sticky;left:0;background:var(--paper)}
thead th:first-child{text-align:left}
th small{white-space:normal;min-width:8.5em}
small{display:block;font-weight:400;color:var(--quiet);font-size:.84em}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}
.key{display:inline-block;width:1.1em;height:.9em;margin:0 .35em 0 .9em;vertical-align:-.08em}
summary{cursor:pointer;color:var(--quiet);font-size:.9rem;margin-top:.4rem}
@media(max-width:520px){main{padding:16px 14px 48px}h1{font-size:1.4rem}table{font-size:.84rem}
th,td{padding-right:.55rem}}
@media print{main{max-width:none;padding:0}figure,article,tr{break-inside:avoid}.wide{overflow:visible}
table{font-size:.75rem}
th,td{white-space:normal}}
"""


def html_cell(text: str, *small: str) -> str:
    """A cell of a table: a line of text, and lines in small print under it."""
    lines = [f"<small>{safe(line)}</small>" for line in small]
    return safe(text) + "".join(lines)


def html_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already; the first cell of each row is its name."""
    head = "".join(f'<th scope="col">{safe(text)}</th>' for text in heads)
    body = "".join(_table_row(row) for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _table_row(cells: Sequence[str]) -> str:
    rest = "".join(f"<td>{cell}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{cells[0]}</th>{rest}</tr>'


def html_grid(parts: Iterable[str]) -> str:
    """Parts beside each other, as many as the screen has room for."""
    return '<div class="grid">' + "\n".join(parts) + "</div>"


def small_print(html: str) -> str:
    """A paragraph in smaller grey print."""
    return f'<p class="quiet">{html}</p>'
