"""Tables that lose no letter: on a narrow terminal cells go over several lines, elsewhere a table is as wide
as it needs."""

from rich.console import Console
from rich.table import Table

WIDE = 1000  # more than any table of ours; what is narrower is not stretched


def show(table: Table) -> None:
    """Print `table`."""
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
    console = Console()
    console.print(table) if console.is_terminal else Console(width=WIDE).print(table)
