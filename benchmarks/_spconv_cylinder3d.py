"""Cylinder3D in spconv for the benchmark: the same layers, widths and neighbourhoods; random weights, one thread.

spconv 2 refuses kernels of two shapes under one key. Here every convolution of a block has the shape of the first,
whose neighbourhood all of them meet in the network as it was published (`neighbourhoods="shared"`): the same work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

GRID = [480, 360, 32]
STRIDES = ((2, 2, 2), (2, 2, 2), (2, 2, 1), (2, 2, 1))


def ready() -> Any:
    """spconv.pytorch, or None where it is not installed; with one thread (with two its CPU kernels race)."""
    try:
        import spconv.pytorch as spconv
        import torch
        from spconv.pytorch import ops
    except ImportError:
        print("spconv is not installed: no peer (pip install spconv)")
        return None
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        ops.get_current_stream = lambda: 0  # its backward pass asks for a CUDA stream on a CPU as well
    return spconv


def forward_and_backward(features: np.ndarray, cells: np.ndarray, classes: int, width: int = 32) -> Callable | None:
    """A function that runs the network on points [n, 9] in cells [n, 4], and the gradients of everything.

    None without spconv.
    """
    spconv = ready()
    if spconv is None:
        return None
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Block(nn.Module):
        """Branches of (convolution, leaky ReLU, norm) under one key, summed."""

        def __init__(self, source: int, target: int, size: tuple, key: str, branches: tuple[int, ...]):
            super().__init__()
            self.branches = nn.ModuleList()
            for depth in branches:
                widths = [source] + [target] * depth
                conv = [spconv.SubMConv3d(a, b, size, bias=False, indice_key=key) for a, b in zip(widths, widths[1:])]
                self.branches.append(nn.ModuleList(conv))
            self.norms = nn.ModuleList(nn.BatchNorm1d(target) for _ in range(sum(branches)))

        def forward(self, x: Any) -> Any:
            norms, total = iter(self.norms), 0
            for branch in self.branches:
                y = x
                for conv in branch:
                    y = conv(y)
                    y = y.replace_feature(next(norms)(nn.functional.leaky_relu(y.features, 0.01)))
                total = y.features + total
            return y.replace_feature(total)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [9, 64, 128, 256, 256]
            layers: list[nn.Module] = [nn.BatchNorm1d(9)]
            for a, b in zip(widths, widths[1:]):
                layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
            self.points, self.compression = nn.Sequential(*layers[:-2]), nn.Linear(256, 16)
            self.context = Block(16, width, (1, 3, 3), "context", (2, 2))
            self.down, self.pool, self.low, self.up, self.high = (nn.ModuleList() for _ in range(5))
            for number, stride in enumerate(STRIDES):
                a, b, key = width * 2**number, width * 2 ** (number + 1), f"pool{number}"
                self.down.append(Block(a, b, (3, 1, 3), f"down{number}", (2, 2)))
                self.pool.append(spconv.SparseConv3d(b, b, 3, stride, 1, bias=False, indice_key=key))
                from_below = width * 2 ** min(number + 2, 4)
                self.low.append(Block(from_below, b, (3, 3, 3), f"low{number}", (1,)))
                self.up.append(spconv.SparseInverseConv3d(b, b, 3, bias=False, indice_key=key))
                self.high.append(Block(b, b, (1, 3, 3), f"high{number}", (3,)))
            wide = 2 * width
            gates = [spconv.SubMConv3d(wide, wide, (3, 1, 1), bias=False, indice_key="gate") for _ in range(3)]
            self.gates, self.gate_norms = nn.ModuleList(gates), nn.ModuleList(nn.BatchNorm1d(wide) for _ in gates)
            self.head = spconv.SubMConv3d(2 * wide, classes, 3, bias=False, indice_key="head")
            self.offset = nn.Parameter(torch.zeros(classes))  # a bias inside is refused on a CPU in eval mode

        def forward(self, x: torch.Tensor, cell: torch.Tensor) -> torch.Tensor:
            sites, row = torch.unique(cell, dim=0, return_inverse=True)
            x = self.points(x)
            index = row[:, None].expand(-1, x.shape[1])
            x = torch.full((len(sites), x.shape[1]), -torch.inf).scatter_reduce(0, index, x, "amax")
            x = torch.relu(self.compression(x))
            y = self.context(spconv.SparseConvTensor(x, sites.int(), GRID, 1))
            skips = []
            for block, pool in zip(self.down, self.pool):
                skips.append(block(y))
                y = pool(skips[-1])
            for low, up, high in list(zip(self.low, self.up, self.high))[::-1]:
                y = up(low(y))
                y = high(y.replace_feature(y.features + skips.pop().features))
            gate = 0
            for conv, norm in zip(self.gates, self.gate_norms):
                gate = torch.sigmoid(norm(conv(y).features)) + gate
            y = self.head(y.replace_feature(torch.cat([gate * y.features, y.features], dim=1)))
            return (y.features + self.offset)[row]

    net = Network().eval()
    points, cell = torch.from_numpy(features).requires_grad_(), torch.from_numpy(cells.astype(np.int64))

    def run() -> None:
        net.zero_grad()
        points.grad = None
        torch.log_softmax(net(points, cell), dim=1)[:, 0].sum().backward()

    return run
