"""Random streams that are named, not shared.

Every draw comes from a generator seeded by (run seed, what for, epoch or step). Nothing has to be saved to
resume, the order in which streams are consumed does not matter, and a run resumed at step 500 draws what an
uninterrupted one draws.
"""

import hashlib

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, such as `derive(0, "crop", 17)`.

    It is the same in every process, on every platform and in every version.

    Args:
        seed: of the run.
        purpose: what the random numbers are for; other words or numbers give an independent seed.
    """
    # Not `hash`, which differs between processes for strings. `repr` keeps "1" and 1 apart.
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=8).digest()
    # 63 bits: torch takes signed 64-bit seeds, and NumPy takes none below 0.
    return int.from_bytes(digest, "little") >> 1


def torch_generator(device: torch.device | str, seed: int, *purpose: str | int) -> torch.Generator:
    """A torch generator on `device` for one purpose; arguments as in `derive`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose; arguments as in `derive`."""
    return np.random.default_rng(derive(seed, *purpose))
