"""`python -m oneshot.benchmark` is the command of `oneshot/nasbench201/__main__.py`."""

from engine.command.cli import main
from oneshot.nasbench201.__main__ import Compare

if __name__ == "__main__":
    main(Compare)
