"""The public names of a package, imported when they are first used.

So `import ofa` takes milliseconds and does not wait for torch.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module-level `__getattr__` for `package`.

        __all__ = ["Space", "load_space"]
        __getattr__ = lazy_names(__name__, {"Space": "ofa.space.space", "load_space": "ofa.space.space"})

    Args:
        package: the name of the package that has the names.
        homes: the module that defines each public name.

    Returns:
        A function that imports the home of a name, keeps the name in the package, and returns it. It raises
        AttributeError for every other name, as a module does.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        value = getattr(import_module(homes[name]), name)
        # Later uses find the name in the package itself and do not come here again.
        setattr(sys.modules[package], name, value)
        return value

    return get
