"""NAS-Bench-201's block between stages (2020, arXiv:2001.00326), of search networks and final ones."""

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Half the size: two 3x3 convolutions, the first of stride 2, beside a shortcut.

    ReLU comes before each of the 3x3 convolutions, BatchNorm after it. The shortcut is an average pool and a
    1x1 convolution.
    """

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(inp, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, I, H, W) -> (N, O, H / 2, W / 2)."""
        # No ReLU after the sum: every convolution of the cells that follow has one in front of it.
        residual = self.norm1(self.conv1(F.relu(x)))
        residual = self.norm2(self.conv2(F.relu(residual)))
        return residual + self.shortcut(F.avg_pool2d(x, 2, 2))
