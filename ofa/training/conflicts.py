"""How far the gradients of the networks of one step agree.

Networks that share weights pull at them in different directions. NASViT (2022, Gradient Conflict aware
Supernet Training) and ElasticViT (2023, arXiv:2303.09730) measure this by the cosine between the gradients of
the largest network and of a subnet: below 0, one of them undoes what the other learns.
"""

import torch
from torch import Tensor

from engine.compute.gradients import Passes
from ofa.supernet import Supernet

Gradient = list[Tensor | None]  # one for each parameter; None where the network does not use it


class GradientParts(Passes):
    """Backward passes whose gradients are kept, each apart: the largest's first, the smallest's last.

    Kept apart they take the memory of the supernet's parameters once for each network. What the last pass
    adds up is, bit for bit, what the backward passes add up by themselves.

    Args:
        supernet: without gradients.
    """

    def __init__(self, supernet: Supernet):
        self.parameters = list(supernet.parameters())
        self.parts: list[Gradient] = []

    def backward(self, loss: Tensor) -> None:
        """Move the gradient of a pass out of the parameters, as the next part."""
        super().backward(loss)
        self.parts.append([parameter.grad for parameter in self.parameters])
        for parameter in self.parameters:
            parameter.grad = None

    def last_backward(self, loss: Tensor) -> None:
        """After the last pass, give the parameters the sum of all parts."""
        self.backward(loss)
        for i, parameter in enumerate(self.parameters):
            # In this order, as floating point sums depend on it.
            for part in self.parts:
                gradient = part[i]
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def cosines(self) -> dict[str, float]:
        """Cosines in [-1, 1] between gradients over all weights; those of random subnets are means.

        Returns:
            Of smallest and largest, and, if there are random subnets, of them and the two others.
        """
        large, *random, small = self.parts
        found = {"cosine_smallest_largest": _cosine(small, large)}
        if random:
            found["cosine_random_largest"] = sum(_cosine(one, large) for one in random) / len(random)
            found["cosine_random_smallest"] = sum(_cosine(one, small) for one in random) / len(random)
        return found


def inner_product(first: Gradient, second: Gradient) -> Tensor:
    """The inner product () of two gradients. Where a network uses no weight its gradient is 0."""
    products = []
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            products.append((a * b).sum())
    return torch.stack(products).sum()


def _cosine(first: Gradient, second: Gradient) -> float:
    lengths = inner_product(first, first) * inner_product(second, second)
    return float(inner_product(first, second) / lengths.sqrt().clamp_min(1e-30))
