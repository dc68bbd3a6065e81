"""How an optional package is installed, from a clone as well as from an index."""

import shlex
from pathlib import Path

# The folder that holds the packages: a clone, or site-packages.
ROOT = Path(__file__).resolve().parents[2]


def install_command(extra: str) -> str:
    """The command that installs an extra.

    From a clone, "ofa-toolkit" would be looked up in an index, where it may be another version or nothing.

    Args:
        extra: its name in pyproject.toml.
    """
    if not (ROOT / "pyproject.toml").is_file():
        return f"pip install 'ofa-toolkit[{extra}]'"
    place = "." if Path.cwd() == ROOT else str(ROOT)
    return f"pip install -e {shlex.quote(f'{place}[{extra}]')}"
