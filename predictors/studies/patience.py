"""What a storage refuses is tried again: two transactions may have met, or a server may be starting."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError

from engine.errors import UserError

T = TypeVar("T")
TRIES = 6  # with 3 seconds between the first and the last


class StorageFails(UserError):
    """A storage of studies failed, for a reason that its driver gave."""

    def __init__(self, error: Exception) -> None:
        # Optuna's own sentence names no reason; its cause is what the driver said.
        lines = str(error.__cause__ or error).strip().splitlines()
        self.reason = lines[0].rstrip(".") if lines else type(error).__name__
        super().__init__(f"The storage of studies fails: {self.reason}.")


def patiently(action: Callable[..., T], *args: Any) -> T:
    """What `action(*args)` returns, tried again if the storage fails.

    Raises:
        StorageFails: it fails every time.
    """
    failures = 0
    while True:
        try:
            return action(*args)
        except Exception as error:
            if not _is_of_storage(error):
                raise
            failures += 1
            if failures == TRIES:
                raise StorageFails(error) from None
        time.sleep(0.05 * 2**failures)


def _is_of_storage(error: Exception) -> bool:
    # redis is imported only where a journal is in Redis.
    of_redis = type(error).__module__.partition(".")[0] == "redis"
    return of_redis or isinstance(error, (StorageInternalError, DBAPIError))
