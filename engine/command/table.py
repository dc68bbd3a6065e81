"""Tables without cut words: a narrow terminal breaks cells over lines; elsewhere a table may be wide."""

from rich.console import Console
from rich.table import Table

WIDE = 1000  # more columns than any table needs; narrower tables are not stretched


def show(table: Table) -> None:
    """Print `table`."""
    for column in table.columns:
        column.overflow = "fold"  # rich would end a long cell with an ellipsis
    console = plain_console()
    if not console.is_terminal:
        console = plain_console(WIDE)
    # Names stay in one piece, to be copied; but what has no room in a line would be cut.
    names = table.columns[0]
    names.no_wrap = max(map(len, map(str, names.cells)), default=0) <= console.width // 2
    console.print(table)


def plain_console(width: int | None = None) -> Console:
    """A console that prints names as they are: `[/b]` or `:cat:` in the name of a class is no command."""
    return Console(width=width, markup=False, emoji=False, highlight=False)
