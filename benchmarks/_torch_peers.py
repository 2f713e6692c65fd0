"""PyTorch contenders: the CIFAR ResNet with option-A shortcuts, and BIM loops around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.extra = stride, width - fan_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.extra - half))
        return F.relu(x + y)


class ResNet(nn.Module):
    """`depth` layers, normalisation inside; keys as in the published checkpoints."""

    def __init__(self, depth: int, mean: tuple, std: tuple) -> None:
        super().__init__()
        n = (depth - 2) // 6
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        fan_in = 16
        for stage, width in enumerate((16, 32, 64)):
            blocks = []
            for index in range(n):
                blocks.append(Block(fan_in, width, 2 if stage and not index else 1))
                fan_in = width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def bim_loop(model: Callable, eps: float, step: float, steps: int) -> Callable:
    """A hand-written BIM: gradient, sign, clip."""

    def attack(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        adversarial = x.clone()
        for _ in range(steps):
            adversarial.requires_grad_(True)
            loss = F.cross_entropy(model(adversarial), y)
            (gradient,) = torch.autograd.grad(loss, adversarial)
            with torch.no_grad():
                adversarial = adversarial + step * gradient.sign()
                adversarial = torch.minimum(torch.maximum(adversarial, x - eps), x + eps).clamp(0, 1)
        return adversarial.detach()

    return attack
