"""Tables that lose no letter: a narrow terminal breaks cells over lines, elsewhere a table may be wide."""

from rich.console import Console
from rich.table import Table

WIDE = 1000  # more columns than any table needs; narrower tables are not stretched


def show(table: Table) -> None:
    """Print `table`."""
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDE)
    console.print(table)
