"""The face network behind FS and FVA: Inception-ResNet v1 in the layout of facenet-pytorch's VGGFace2 file.

The design is that of Szegedy et al. 2017 (Fig. 10, 11 and 14-17), in the variant that David Sandberg's facenet trained:
residual branches scaled by 0.17, 0.10 and 0.20, a linear layer without bias to 512 numbers, and a batch norm behind it. Parts are
named as in the file, so that its weights are read as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["FACE_SIZE", "InceptionResnetV1", "STD"]

FACE_SIZE = 160
"""Side of the aligned faces that it was trained on, in pixels."""
STD = 0.5 * 128 / 127.5
"""With mean 0.5 it turns [0,1] into (bytes - 127.5) / 128, what the network was trained on."""
EPS = 1e-3  # of every batch norm


class InceptionResnetV1(nn.Module):
    """A face (N,3,H,W), pixels as (bytes - 127.5) / 128 -> its identity, (N,512), of length 1.

    Images of another size than 160x160 are resized to it. Faces should be cropped and aligned as in training: a face with some
    margin that fills the image.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv2d_1a = Unit(3, 32, 3, stride=2)
        self.conv2d_2a = Unit(32, 32, 3)
        self.conv2d_2b = Unit(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = Unit(64, 80, 1)
        self.conv2d_4a = Unit(80, 192, 3)
        self.conv2d_4b = Unit(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(_block_35() for _ in range(5)))
        self.mixed_6a = Branches(
            Unit(256, 384, 3, stride=2),
            nn.Sequential(Unit(256, 192, 1), Unit(192, 192, 3, padding=1), Unit(192, 256, 3, stride=2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*(_block_17() for _ in range(10)))
        self.mixed_7a = Branches(
            nn.Sequential(Unit(896, 256, 1), Unit(256, 384, 3, stride=2)),
            nn.Sequential(Unit(896, 256, 1), Unit(256, 256, 3, stride=2)),
            nn.Sequential(Unit(896, 256, 1), Unit(256, 256, 3, padding=1), Unit(256, 256, 3, stride=2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*(_block_8(0.20) for _ in range(5)))
        self.block8 = _block_8(1.0, last=True)
        self.last_linear = nn.Linear(1792, 512, bias=False)
        self.last_bn = nn.BatchNorm1d(512, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(N,3,H,W) -> (N,512)."""
        if tuple(x.shape[-2:]) != (FACE_SIZE, FACE_SIZE):
            x = nn.functional.interpolate(x, (FACE_SIZE, FACE_SIZE), mode="bilinear", antialias=True)
        x = self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x)))
        x = self.conv2d_4b(self.conv2d_4a(self.conv2d_3b(self.maxpool_3a(x))))
        x = self.mixed_6a(self.repeat_1(x))
        x = self.mixed_7a(self.repeat_2(x))
        x = self.block8(self.repeat_3(x))
        return nn.functional.normalize(self.last_bn(self.last_linear(x.mean((2, 3)))), dim=1)


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu()


class Branches(nn.Module):
    """Parts that see the same maps; their outputs are joined along the channels."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.count = len(parts)
        for k, part in enumerate(parts):
            self.add_module(f"branch{k}", part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([getattr(self, f"branch{k}")(x) for k in range(self.count)], 1)


class Residual(Branches):
    """x + scale * (the branches, mixed by a 1x1 convolution), then ReLU unless it is the last block."""

    def __init__(
        self, channels: int, joined: int, scale: float, parts: Sequence[nn.Module], last: bool = False
    ) -> None:
        super().__init__(*parts)
        self.conv2d = nn.Conv2d(joined, channels, 1)
        self.scale, self.last = scale, last

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.conv2d(super().forward(x))
        return x if self.last else x.relu()


def _block_35() -> Residual:
    """A block on maps of 17x17 (35x35 in the design for larger images)."""
    two = nn.Sequential(Unit(256, 32, 1), Unit(32, 32, 3, padding=1))
    three = nn.Sequential(Unit(256, 32, 1), Unit(32, 32, 3, padding=1), Unit(32, 32, 3, padding=1))
    return Residual(256, 96, 0.17, [Unit(256, 32, 1), two, three])


def _block_17() -> Residual:
    """A block on maps of 8x8 (17x17)."""
    wide = (Unit(128, 128, (1, 7), padding=(0, 3)), Unit(128, 128, (7, 1), padding=(3, 0)))
    return Residual(896, 256, 0.10, [Unit(896, 128, 1), nn.Sequential(Unit(896, 128, 1), *wide)])


def _block_8(scale: float, last: bool = False) -> Residual:
    """A block on maps of 3x3 (8x8)."""
    wide = (Unit(192, 192, (1, 3), padding=(0, 1)), Unit(192, 192, (3, 1), padding=(1, 0)))
    return Residual(1792, 384, scale, [Unit(1792, 192, 1), nn.Sequential(Unit(1792, 192, 1), *wide)], last)
