"""PyTorch peer of a GradAuto benchmark: SkipNet-38 (CIFAR, HRL, recurrent gate) and the released attack's loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F

LOW, HIGH = (-2.4291, -2.4183, -2.2214), (2.5141, 2.5968, 2.7537)

Model = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor, object]]
"""Normalised images -> (logits, masks, gate probabilities, hidden), masks and probabilities [batch, gate]."""


class Block(nn.Module):
    def __init__(self, fan_in: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu, self.downsample = nn.ReLU(inplace=True), downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Control(nn.Module):
    """One LSTM step and one linear unit, shared by all gates."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn, self.proj = nn.LSTM(hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, embedding: torch.Tensor, state: tuple | None) -> tuple[torch.Tensor, torch.Tensor, tuple]:
        out, state = self.rnn(embedding[None], state)
        probability = torch.sigmoid(self.proj(out[0])[:, 0])
        return (probability > 0.5).float(), probability, state


class SkipNet38(nn.Module):
    """Evaluation only; both paths are computed and mixed by the mask. Keys as in the released network."""

    def __init__(self, num_classes: int = 10, hidden: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        fan_in, self.names = 16, []
        for group, width in enumerate((16, 32, 64)):
            for i in range(6):
                stride, projection = 2 if group and not i else 1, None
                if stride == 2:
                    projection = nn.Sequential(nn.Conv2d(fan_in, width, 1, stride, bias=False), nn.BatchNorm2d(width))
                prefix = f"group{group + 1}_"
                setattr(self, f"{prefix}ds{i}", projection)  # the block's own, under a second name
                setattr(self, f"{prefix}layer{i}", Block(fan_in, width, stride, projection))
                pool = nn.AvgPool2d(32 // 2**group)
                setattr(self, f"{prefix}gate{i}", nn.Sequential(pool, nn.Conv2d(width, hidden, 1)))
                self.names.append((f"{prefix}ds{i}", f"{prefix}layer{i}", f"{prefix}gate{i}"))
                fan_in = width
        self.control, self.fc = Control(hidden), nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple]:
        x = F.relu(self.bn1(self.conv1(x)))
        state, masks, probabilities = None, [], []
        for number, (ds, layer, gate) in enumerate(self.names):
            out = getattr(self, layer)(x)
            if number:
                projection = getattr(self, ds)
                skipped = x if projection is None else projection(x)
                mask = masks[-1][:, None, None, None]
                out = mask * out + (1 - mask) * skipped
            x = out
            if number < len(self.names) - 1:
                mask, probability, state = self.control(getattr(self, gate)(x).flatten(1), state)
                masks.append(mask)
                probabilities.append(probability)
        logits = self.fc(F.avg_pool2d(x, 8).flatten(1))
        return logits, torch.stack(masks, 1), torch.stack(probabilities, 1), state


def squashed(x: torch.Tensor) -> torch.Tensor:
    """The released ``tanh(0.8 x)`` between CIFAR-10's normalised black and white."""
    low, high = (torch.tensor(v, device=x.device)[None, :, None, None] for v in (LOW, HIGH))
    return low + (high - low) * (torch.tanh(0.8 * x) + 1) / 2


def gate_losses(probability: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(minus the excess of the gates that are on, what the others lack), each summed over gates and examples."""
    return -torch.clamp(probability - 0.5, min=0).sum(), torch.clamp(0.5 - probability, min=0).sum()


def assembled(distortion: torch.Tensor, on: torch.Tensor, off: torch.Tensor, K: float) -> torch.Tensor:
    """Gradients [batch, channel, height, width] of the three losses -> the gradient that Adam gets."""
    direction = on / (on.norm(p=2, dim=(1, 2, 3), keepdim=True) + 1e-20)
    against = torch.einsum("nchw,nchw->n", off, direction).clamp(max=0)
    off = off - against[:, None, None, None] * direction
    off = off / (off.norm(p=2, dim=(1, 2, 3), keepdim=True) + 1e-20)
    return K * off[0].numel() * off + distortion


def released_gradients(modifier: torch.Tensor, losses: list[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of the losses as released: backward passes through one graph, the parameters' gradients included."""
    gradients = []
    for loss in losses:
        modifier.grad = None
        loss.backward(retain_graph=loss is not losses[-1])
        gradients.append(modifier.grad.clone().detach())
    return gradients


def careful_gradients(modifier: torch.Tensor, losses: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same as a careful user writes it: no gradient but the modifier's is computed."""
    return [torch.autograd.grad(loss, modifier, retain_graph=loss is not losses[-1])[0] for loss in losses]


def attack(
    gradients_of: Callable, model: Model, x: torch.Tensor, steps: int, K: float = 1.0, learning_rate: float = 0.01
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """GradAuto as released: three gradients an iteration.

    Args:
      gradients_of: `released_gradients` or `careful_gradients`.
      model: in evaluation mode; freeze its parameters (``model.requires_grad_(False)``) for the careful ones, which
        spares the products that only their gradients need.
      x: [batch, channel, height, width], normalised.

    Returns:
      The modifier after the last update; masks and squared distortion [batch] of the forward pass before it.
    """
    modifier = torch.zeros_like(x).requires_grad_(True)
    adam = torch.optim.Adam([modifier], lr=learning_rate)
    for _ in range(steps):
        adversarial = squashed(modifier + x)
        _, masks, probability, _ = model(adversarial)
        losses = [((adversarial - x) ** 2).sum(), *gate_losses(probability)]
        modifier.grad = assembled(*gradients_of(modifier, losses), K)
        adam.step()
        squared = ((adversarial - x) ** 2).mean((1, 2, 3)).detach()
    return modifier.detach(), masks.detach(), squared


released_loop, careful_loop = partial(attack, released_gradients), partial(attack, careful_gradients)
