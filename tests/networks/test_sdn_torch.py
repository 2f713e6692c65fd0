"""MobileNet with exits against a PyTorch network of the authors' layer names, with their weights' conversion."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import weights_convert
from dyn_jax.networks.sdn_mobilenet import mobilenet
from dyn_jax.testing._compare import quick_jit

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

WIDTHS, STRIDES, EXIT_AFTER = (6, 8, 8), (1, 2, 2), (0, 2)


def twin():
    """The reduced network: 8x8 images, maps 8, 4, 2; exit after block 2 has no mixed pooling."""
    nn = torch.nn

    class Exit(nn.Module):
        def __init__(self, size, channels):
            super().__init__()
            if size >= 4:
                self.alpha = nn.Parameter(torch.rand(1))
            self.linear = nn.Linear(channels * min(size, 4) ** 2, 5)

        def forward(self, x):
            if hasattr(self, "alpha"):
                k = x.shape[2] // 4
                pool = nn.functional
                x = self.alpha * pool.max_pool2d(x, k) + (1 - self.alpha) * pool.avg_pool2d(x, k)
            return self.linear(x.flatten(1))

    class Block(nn.Module):
        def __init__(self, fan_in, width, stride, size, has_exit):
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv2d(fan_in, fan_in, 3, stride, 1, groups=fan_in, bias=False),
                nn.BatchNorm2d(fan_in),
                nn.ReLU(),
                nn.Conv2d(fan_in, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            if has_exit:
                self.output = Exit(size, width)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.init_conv = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
            self.layers, fan_in, size = nn.ModuleList(), 4, 8
            for i, (width, stride) in enumerate(zip(WIDTHS, STRIDES)):
                size //= stride
                self.layers.append(Block(fan_in, width, stride, size, i in EXIT_AFTER))
                fan_in = width
            self.end_layers = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(fan_in, 5))

        def forward(self, x):
            x, exits = self.init_conv(x), []
            for block in self.layers:
                x = block.layers(x)
                if hasattr(block, "output"):
                    exits.append(block.output(x))
            return torch.stack([*exits, self.end_layers(x)], dim=1)

    torch.manual_seed(0)
    net = Net()
    for name, buffer in net.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    return net.eval()


def test_logits_and_gradient():
    theirs = twin()
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    widths = {"stem_width": 4, "widths": WIDTHS, "strides": STRIDES, "exit_after": EXIT_AFTER}
    ours = mobilenet(**widths, image_size=8, num_classes=5, normalization=None)
    variables = weights_convert.convert(ours, state)
    images = np.random.default_rng(0).random((3, 8, 8, 3), np.float32)
    x = torch.tensor(images.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    expected = theirs(x)
    torch.logsumexp(expected, 2).sum().backward()

    @quick_jit
    def run(x):
        def total(x):
            every = ours.apply(variables, x).trace.exits
            return jnp.sum(jax.nn.logsumexp(every, axis=2)), every

        return jax.grad(total, has_aux=True)(x)

    gradient, every = run(images)
    np.testing.assert_allclose(every, expected.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(gradient, x.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)
