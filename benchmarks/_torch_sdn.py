"""PyTorch peer of `benchmarks.early_attack`: ResNet-56 with internal classifiers and the released attack's loop."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EXIT_AFTER = (3, 7, 11, 15, 19, 23)


class Classifier(nn.Module):
    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.window, self.alpha = size // 4, nn.Parameter(torch.rand(1))
        self.linear = nn.Linear(16 * channels, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = self.alpha * F.max_pool2d(x, self.window) + (1 - self.alpha) * F.avg_pool2d(x, self.window)
        return self.linear(mixed.flatten(1))


class Block(nn.Module):
    def __init__(self, fan_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(fan_in, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(fan_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.branch(x) + self.shortcut(x)


class ResNet56SDN(nn.Module):
    """Normalised images -> list of the seven exits' logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        blocks, heads, fan_in = [], {}, 16
        for stage, width in enumerate((16, 32, 64)):
            for index in range(9):
                blocks.append(Block(fan_in, width, 2 if stage and not index else 1))
                fan_in = width
                if len(blocks) - 1 in EXIT_AFTER:
                    heads[str(len(blocks) - 1)] = Classifier(32 // 2**stage, width)
        self.blocks, self.heads, self.fc = nn.ModuleList(blocks), nn.ModuleDict(heads), nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x, exits = self.stem(x), []
        for i, block in enumerate(self.blocks):
            total = block(x)
            if i in EXIT_AFTER:
                exits.append(self.heads[str(i)](total))
            x = F.relu(total)
        return [*exits, self.fc(x.mean((2, 3)))]


def released_loop(model: nn.Module, x: torch.Tensor, alpha: float, c: float, rate: float, steps: int) -> torch.Tensor:
    """One image: the loop of `dyn_jax.attacks.early_attack` with ``protocol="release"``, as released, iteration by
    iteration."""
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    clean = (x - mean) / std
    with torch.no_grad():
        kept = int(model(clean)[-1].argmax())
    w = torch.rand_like(x).requires_grad_(True)
    adam = torch.optim.Adam([w], lr=rate)
    for iteration in range(steps):
        adversarial = ((torch.tanh(w) + 1) / 2 - mean) / std
        probabilities = [F.softmax(logits, dim=1)[0] for logits in model(adversarial)]
        last = probabilities[-1]
        first = sum(torch.clamp(last[kept] - last[j], min=0) for j in range(10) if j != kept)
        second = sum(p[kept] for p in probabilities[:-1])
        loss = c * (second - alpha * first) + ((adversarial - clean) ** 2).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            says = [int(logits.argmax()) for logits in model(adversarial)]
        if iteration >= 200 and says[-1] == kept and all(s != kept for s in says[:-1]):
            break
    return adversarial.detach()
