"""Image files as batches on a device: workers decode them, and copies to a GPU run ahead.

Workers stay from one epoch to the next: to start them takes a second or two on a machine whose process is
large, and their first batches come late. What an image becomes depends on its own seed, so it does not
matter which worker decodes it, nor when that was started.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from engine.data.image_files import ImageFiles, Item, Listing, Transforms, collate, start_worker
from engine.errors import UserError, WorkerDied

Pair = tuple[Tensor, Tensor]  # images and their classes
Loader = DataLoader[tuple[Tensor, int, str]]
AHEAD = 4  # batches that each worker decodes in advance


class Order(Sampler[list[Item]]):
    """The batches of the current epoch, for a loader whose workers see many epochs."""

    def __init__(self, batches: list[list[Item]]):
        self.batches = batches

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Decoder:
    """Decodes the files of a list in batches.

    Args:
        listing: the files and their classes.
        transforms: how a file becomes a tensor.
        device: where the batches are delivered.
        workers: processes that decode; 0: this one does.
        stays: whether the workers wait for a next call.
    """

    def __init__(
        self, listing: Listing, transforms: Transforms, device: torch.device, workers: int, stays: bool
    ):
        self.files = ImageFiles(listing, transforms)
        self.device, self.workers, self.stays = device, workers, stays
        self._order = Order([])
        self._loader: Loader | None = None
        self._busy = False  # whether a caller is in the middle of an epoch

    def batches(self, items: list[list[Item]]) -> Iterator[Pair]:
        """uint8 images (N, 3, size, size) on the device and classes (N,), a batch for each list of items.

        Raises:
            UserError: an image is damaged.
            WorkerDied: a worker process ended.
        """
        # A second caller, such as a measurement in the middle of an epoch, has a loader for itself: one
        # loader cannot deliver two epochs at once.
        mine = not self._busy
        if mine:
            self._busy = True
        try:
            loader = self._staying(items) if mine and self.stays else self._new_loader(Order(items), False)
            yield from on_device(_checked(loader), self.device)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # torch has no class of its own for the death of a worker, only this text; and a worker that dies
            # while it hands over a batch closes the connection to it.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            self._loader = None
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise WorkerDied(
                f"A process that decodes images died ({said}), maybe without memory; "
                "use fewer --data.workers, and run the same command again, a training with --resume."
            ) from None
        finally:
            if mine:
                self._busy = False

    def _staying(self, items: list[list[Item]]) -> Loader:
        """The loader whose workers stay, which delivers these items next."""
        self._order.batches = items
        # After a resume the first epoch may have had fewer batches than there are workers.
        if self._loader is None or self._loader.num_workers < min(self.workers, len(items)):
            self._loader = self._new_loader(self._order, True)
        return self._loader

    def _new_loader(self, order: Order, stays: bool) -> Loader:
        workers = min(self.workers, len(order))  # a worker without a batch would be started for nothing
        return DataLoader(
            self.files,
            batch_sampler=order,
            num_workers=workers,
            collate_fn=collate,
            worker_init_fn=start_worker,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=AHEAD if workers else None,  # torch takes no number without workers
            persistent_workers=stays and workers > 0,
        )


def _checked(loader: Loader) -> Iterator[Pair]:
    """The batches of a loader; a damaged image ends them with an error."""
    for x, y, complaint in loader:
        if complaint:
            raise UserError(complaint)
        yield x, y


def on_device(batches: Iterable[Pair], device: torch.device) -> Iterator[Pair]:
    """The same batches on `device`.

    To a GPU each is copied on a stream of its own as soon as it is there, one batch ahead of what is
    computed, so that neither the GPU nor the host waits for a copy.

    Args:
        batches: on the CPU; in pinned memory if the device is a GPU, else copies would wait.
        device: where they are wanted.
    """
    if device.type != "cuda":
        for x, y in batches:
            yield x.to(device), y.to(device)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Pair, torch.cuda.Event] | None = None
    for x, y in batches:
        with torch.cuda.stream(stream):
            moved = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            arrives = stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead, device)
        ahead = moved, arrives
    if ahead is not None:
        yield _arrived(*ahead, device)


def _arrived(batch: Pair, arrives: torch.cuda.Event, device: torch.device) -> Pair:
    """The batch, for the stream that computes: that waits for the copy, and the host does not."""
    computing = torch.cuda.current_stream(device)
    # For this batch and not for the whole stream, on which the copy of the next one is queued already.
    computing.wait_event(arrives)
    for tensor in batch:
        # Else its memory would be free for the next copy as soon as Python drops the tensor, though the
        # computation that reads it is only queued.
        tensor.record_stream(computing)
    return batch
