"""Two real processes that tests run functions in. A module of its own, since they import it by name."""

import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from forked import FORKED, SPAWNED


class Pair:
    """Two processes that stand where torchrun puts its own; `pair(function, *args)` runs the function in
    both."""

    def __init__(self) -> None:
        pipes = [FORKED.Pipe() for _ in range(2)]
        self.ends = [end for end, _ in pipes]
        serve = [(rank, end) for rank, (_, end) in enumerate(pipes)]
        # Unlike, as real ones are.
        self.processes = [
            FORKED.Process(target=_serve, args=serve[0], daemon=True),
            SPAWNED.Process(target=_serve, args=serve[1], daemon=True),
        ]
        for process in self.processes:
            process.start()

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """What it returned on rank 0 and on rank 1: a result, or the exception."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for end in self.ends:
            end.send((port, function, args))
        assert all(end.poll(120) for end in self.ends), "a rank hangs"
        return [end.recv() for end in self.ends]


def _serve(rank: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    names = {
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
    }
    os.environ.update(names | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"})
    while True:
        port, function, args = pipe.recv()
        os.environ["MASTER_PORT"] = str(port)
        try:
            pipe.send(function(*args))
        except Exception as error:
            pipe.send(error)
        if dist.is_initialized():  # after an error
            dist.destroy_process_group()
