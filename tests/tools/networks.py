"""Two small networks, pruned; no import of structprune at the top: a pickle of them must load without it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """A stem, a residual block with batch norm and a depthwise convolution, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.depthwise, self.norm2 = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.norm3 = nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm3(self.conv2(F.relu(self.norm2(self.depthwise(y)))))
        return self.head(F.relu(x + y).mean((2, 3)))


class Attention(nn.Module):
    """A block as a vision transformer has it: four heads of a fused projection, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 8
        self.embed, self.norm1, self.norm2 = nn.Linear(6, 32), nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, self.width)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.35)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, self.heads * self.width))
        return self.head((x + self.down(F.gelu(self.up(self.norm2(x))))).mean(1))


class Case(NamedTuple):
    """A network and the shape of one sample."""

    kind: type[nn.Module]
    sample: tuple[int, ...]

    def dense(self) -> nn.Module:
        """The network with weights of a fixed seed, and statistics that batch norm has seen."""
        torch.manual_seed(0)
        model = self.kind()
        with torch.no_grad():
            for _ in range(3):
                model(self.batch(8))
        return model.eval()

    def pruned(self) -> nn.Module:
        """What structprune makes of it."""
        import structprune

        return structprune.prune_model(self.dense(), 0.5, example_inputs=self.batch(1), round_to=1)

    def batch(self, size: int = 2) -> torch.Tensor:
        """Random inputs, the same for the same size."""
        return torch.randn(size, *self.sample, generator=torch.Generator().manual_seed(size))


CASES = {"residual": Case(Residual, (3, 8, 8)), "attention": Case(Attention, (7, 6))}


def lightning_module(network: nn.Module, optimizer: Any = None) -> Any:
    """A ``LightningModule`` that holds a network and trains it as a classifier."""
    from tests.support import vision

    vision.torchvision()  # lightning imports it
    import lightning

    class Lit(lightning.LightningModule):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x)

        def training_step(self, batch: Any, _index: int) -> torch.Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return optimizer(self.parameters())

    return Lit(network)
