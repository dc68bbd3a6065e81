"""Which settings of a search differ from those that its method has on its space."""

from collections.abc import Mapping
from typing import Any

from engine.config import over_defaults, validate
from oneshot.ending.record import Change
from oneshot.methods.method import Method
from oneshot.spaces.cells import settings_space

# Settings of a method that flags of the command give, too.
ALSO_FLAGS = ("epochs", "batch_size", "channels")


def changes_of(
    method: Method, space: str, flags: Mapping[str, Any], others: Mapping[str, tuple[Any, Any]]
) -> tuple[Change, ...]:
    """What differs from the method's own settings on a space.

    Args:
        method: as it was used.
        space: the name of the space.
        flags: `epochs`, `batch_size` and `channels` as they were used.
        others: settings that are not the method's, published and used.
    """
    own = own_settings(method, space).model_dump(mode="json")
    used = method.model_dump(mode="json") | dict(flags)
    found = []
    for name, value in own.items():
        where = name if name in ALSO_FLAGS else f"method.{name}"
        found += _differences(where, value, used[name])
    for name, (published, here) in others.items():
        found += _differences(name, published, here)
    return tuple(found)


def own_settings(method: Method, space: str) -> Method:
    """The method with what was published for a space, where nothing is asked for."""
    kind = type(method)
    values = {"name": method.name, **kind.published.get(settings_space(space), {})}
    return validate(kind, over_defaults(kind, values), "published settings")


def _differences(where: str, own: Any, used: Any) -> list[Change]:
    """Setting by setting, where both have the same ones."""
    if isinstance(own, dict) and isinstance(used, dict) and own.keys() == used.keys():
        found = []
        for name in own:
            found += _differences(f"{where}.{name}", own[name], used[name])
        return found
    return [] if own == used else [Change(setting=where, published=own, used=used)]


def rate_remark(changes: tuple[Change, ...], method: Method) -> str | None:
    """A sentence where the batch was changed and the rate of the weights was not."""
    changed = {change.setting: change for change in changes}
    batch = changed.get("batch_size")
    if batch is None or "method.sgd.lr" in changed:
        return None
    rate = method.sgd.lr
    linear = rate * batch.used / batch.published
    return (
        f"the rate {rate:g} is for batches of {batch.published}, and a batch here has {batch.used}; "
        f"the linear rule would give --method.sgd.lr {linear:.3g}, which may suit this search or not"
    )
