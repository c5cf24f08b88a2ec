"""Small seeded PyTorch networks, one per architecture family: the subjects of `make_goldens.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

INPUT_SHAPE = (2, 3, 24, 36)  # N, channels, H, W: not square, and W/8 is not whole


class Plain(nn.Module):
    """VGG-like; Flatten and a two-layer MLP, so class scores are not linear in the last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(8, 10, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(10, 8, 3, padding=1)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(8 * 3 * 4, 14)
        self.relu4 = nn.ReLU()
        self.fc2 = nn.Linear(14, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        x = self.pool3(self.relu3(self.conv3(x)))
        return self.fc2(self.relu4(self.fc1(x.flatten(1))))


class BasicBlock(nn.Module):
    """ResNet's basic block: 3x3 and 3x3 with BatchNorm, 1x1 projection where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        projection = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else nn.Sequential(*projection)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + self.shortcut(x))


class Residual(nn.Module):
    """ResNet-like, stride 8 (36 / 8 rounds up to 5), global average pooling and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.block1 = BasicBlock(6, 6, 1)
        self.block2 = BasicBlock(6, 8, 2)
        self.block3 = BasicBlock(8, 10, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.relu(self.bn(self.conv(x))))))
        return self.fc(self.pool(x).flatten(1))


class SqueezeExcite(nn.Module):
    """Channel gate from the global average."""

    def __init__(self, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // 2, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(channels // 2, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.relu(self.reduce(self.pool(x)))))


class InvertedResidual(nn.Module):
    """MobileNet's block: expand 1x1, depthwise, squeeze-excite, project 1x1 without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, kernel: int, activation: type, gate: type) -> None:
        super().__init__()
        hidden = 2 * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden), activation())
        depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(hidden), activation())
        self.excite = SqueezeExcite(hidden, gate())
        self.project = nn.Sequential(nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + y if self.skip else y


class Depthwise(nn.Module):
    """MobileNet-like: ReLU6 and Sigmoid gates (V2 with squeeze-excite), then Hardswish and Hardsigmoid (V3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        self.block1 = InvertedResidual(6, 6, 1, 3, nn.ReLU6, nn.Sigmoid)
        self.block2 = InvertedResidual(6, 8, 2, 5, nn.Hardswish, nn.Hardsigmoid)
        self.head = nn.Sequential(nn.Conv2d(8, 14, 1, bias=False), nn.BatchNorm2d(14), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Linear(14, 12)
        self.act = nn.Hardswish()
        self.fc2 = nn.Linear(12, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.head(self.block2(self.block1(self.stem(x))))).flatten(1)
        return self.fc2(self.act(self.fc1(x)))


class Inception(nn.Module):
    """1x1, 3x3, 5x5 (1x5 then 5x1) and average-pooled branches, concatenated."""

    def __init__(self, inputs: int, width: int, *, count_include_pad: bool) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(inputs, width, 1), nn.ReLU())
        self.three = nn.Sequential(
            nn.Conv2d(inputs, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        self.five = nn.Sequential(
            nn.Conv2d(inputs, width, (1, 5), padding=(0, 2)),
            nn.ReLU(),
            nn.Conv2d(width, width, (5, 1), padding=(2, 0)),
            nn.ReLU(),
        )
        self.pooled = nn.Sequential(
            nn.AvgPool2d(3, 1, 1, count_include_pad=count_include_pad), nn.Conv2d(inputs, width, 1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)


class Branches(nn.Module):
    """Inception-like; the two modules count padding differently in their average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.relu = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2, ceil_mode=True)
        self.mixed1 = Inception(6, 3, count_include_pad=False)
        self.pool2 = nn.AvgPool2d(2)
        self.mixed2 = Inception(12, 3, count_include_pad=True)
        self.pool3 = nn.AdaptiveAvgPool2d((2, 3))
        self.fc = nn.Linear(12 * 2 * 3, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mixed1(self.pool1(self.relu(self.conv(x))))
        return self.fc(self.pool3(self.mixed2(self.pool2(x))).flatten(1))


class Smooth(nn.Module):
    """SiLU trunk and a GELU / Tanh MLP head: second derivatives are not zero, activations can be negative."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, 1)
        self.act1 = nn.SiLU()
        self.conv2 = nn.Conv2d(8, 12, 3, 2, 1)
        self.act2 = nn.SiLU()
        self.pool = nn.AdaptiveAvgPool2d((2, 3))
        self.fc1 = nn.Linear(12 * 2 * 3, 16)
        self.act3 = nn.GELU()
        self.fc2 = nn.Linear(16, 12)
        self.act4 = nn.Tanh()
        self.fc3 = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act2(self.conv2(self.act1(self.conv1(x))))).flatten(1)
        return self.fc3(self.act4(self.fc2(self.act3(self.fc1(x)))))


class Attention(nn.Module):
    """Multi-head self-attention over tokens (N, L, K); `fused` writes it as one scaled_dot_product_attention."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        qkv = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.fused:
            y = functional.scaled_dot_product_attention(q, k, v)
        else:
            y = (q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, length, width))


class WindowAttention(nn.Module):
    """Self-attention in 3x3 windows (N * windows, 9, K) with a relative bias and, at the seam of a shift, a mask."""

    def __init__(self, width: int, heads: int, mask: Tensor | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.relative = nn.Parameter(torch.zeros(heads, 9, 9))
        self.register_buffer("mask", mask)  # (windows, 1, 9, 9)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        width = self.proj.in_features
        q, k, v = self.qkv(x).reshape(-1, 9, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind()
        scores = q * (width // self.heads) ** -0.5 @ k.transpose(-2, -1) + self.relative
        if self.mask is not None:
            scores = (scores.reshape(-1, len(self.mask), self.heads, 9, 9) + self.mask).reshape(-1, self.heads, 9, 9)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 9, width))


class Mlp(nn.Sequential):
    """Linear, GELU, Linear along the last axis."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class TransformerBlock(nn.Module):
    """Pre-norm encoder block."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, fused=fused)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """ViT on 4x4 patches: a class token read by the head, or the mean over the tokens."""

    def __init__(self, *, class_token: bool, fused: bool) -> None:
        super().__init__()
        width = 12
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, width)) if class_token else None
        self.position = nn.Parameter(torch.zeros(1, 6 * 9 + class_token, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, 3, fused=fused) for _ in range(2)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.position))
        return self.head(x.mean(1) if self.cls is None else x[:, 0])


class ViT(VisionTransformer):
    """Head on the class token, attention spelled out."""

    def __init__(self) -> None:
        super().__init__(class_token=True, fused=False)


class AverageViT(VisionTransformer):
    """Head on the mean token, fused attention."""

    def __init__(self) -> None:
        super().__init__(class_token=False, fused=True)


class WindowBlock(nn.Module):
    """Swin's block on channels-last tokens (N, h, w, K): attention in 3x3 windows, shifted by one in odd blocks."""

    def __init__(self, width: int, heads: int, grid: tuple[int, int], *, shifted: bool) -> None:
        super().__init__()
        self.grid, self.shifted = grid, shifted
        h, w = grid
        mask = None
        if shifted:  # rolled by one, the last row and column of a window belong to the opposite edge
            region = torch.zeros(1, h, w, 1)
            region[:, h - 1] += 1
            region[:, :, w - 1] += 2
            region = self.windows(region, 1)[..., 0]
            mask = torch.where(region[:, None, :] == region[:, :, None], 0.0, -100.0)[:, None]
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, mask)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 2 * width)

    def windows(self, x: Tensor, k: int) -> Tensor:
        h, w = self.grid
        return x.reshape(-1, h // 3, 3, w // 3, 3, k).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, k)

    def forward(self, x: Tensor) -> Tensor:
        (h, w), k = self.grid, self.norm1.normalized_shape[0]
        y = self.norm1(x)
        if self.shifted:
            y = torch.roll(y, (-1, -1), (1, 2))
        y = self.attn(self.windows(y, k))
        y = y.reshape(-1, h // 3, w // 3, 3, 3, k).permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, k)
        if self.shifted:
            y = torch.roll(y, (1, 1), (1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class Swin(nn.Module):
    """Swin-like: 2x2 patches, two window blocks, patch merging, two window blocks, global average."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, 2)
        self.stage1 = nn.Sequential(*(WindowBlock(6, 2, (12, 18), shifted=s) for s in (False, True)))
        self.merge_norm = nn.LayerNorm(24)
        self.merge = nn.Linear(24, 10, bias=False)
        self.stage2 = nn.Sequential(*(WindowBlock(10, 2, (6, 9), shifted=s) for s in (False, True)))
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.patch(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
        x = self.stage2(self.merge(self.merge_norm(x)))
        return self.head(self.norm(x).mean((1, 2)))


class ConvNextBlock(nn.Module):
    """Depthwise 7x7, LayerNorm and MLP on channels-last, layer scale, skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, 3 * width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1))) * self.scale
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    """ConvNeXt-like with a 2x2 patchify stem and one downsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.block1 = ConvNextBlock(6)
        self.norm1 = nn.LayerNorm(6)
        self.down = nn.Conv2d(6, 10, 2, 2)
        self.block2 = ConvNextBlock(10)
        self.block3 = ConvNextBlock(10)
        self.norm2 = nn.LayerNorm(10)
        self.head = nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(self.stem(x)).permute(0, 2, 3, 1)
        x = self.block3(self.block2(self.down(self.norm1(x).permute(0, 3, 1, 2))))
        return self.head(self.norm2(x.mean((2, 3))))


class Hybrid(nn.Module):
    """Convolutional stem with BatchNorm, then one `nn.TransformerEncoderLayer` on its feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv2 = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.encoder = nn.TransformerEncoderLayer(12, 2, 24, 0.0, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x)).flatten(2).transpose(1, 2)
        return self.head(self.encoder(x).mean(1))


class MixerBlock(nn.Module):
    """MLP across the tokens, then MLP across the channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.across_tokens = Mlp(tokens, 16)
        self.norm2 = nn.LayerNorm(width)
        self.across_channels = Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.across_channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer on 4x4 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 10, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock(54, 10) for _ in range(2)))
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


@dataclass(frozen=True)
class Network:
    """How to build one network and where it is explained."""

    make: Callable[[], nn.Module]
    seed: int
    middle: str  # module paths, in execution order
    last: str
    layout: dict[str, Any]  # how an activation becomes (N, K, h, w)


CHANNELS_FIRST = {"kind": "channels_first"}
CHANNELS_LAST = {"kind": "channels_last"}
TOKENS = {"kind": "tokens", "class_tokens": 0, "grid": [6, 9]}
CLASS_TOKEN = {"kind": "tokens", "class_tokens": 1, "grid": [6, 9]}

NETWORKS = {
    "plain": Network(Plain, 1, "relu2", "relu3", CHANNELS_FIRST),
    "residual": Network(Residual, 13, "block2", "block3", CHANNELS_FIRST),
    "depthwise": Network(Depthwise, 102, "block1", "head", CHANNELS_FIRST),
    "branches": Network(Branches, 15, "mixed1", "mixed2", CHANNELS_FIRST),
    "smooth": Network(Smooth, 5, "act1", "act2", CHANNELS_FIRST),
    "vit": Network(ViT, 6, "blocks.0.norm1", "blocks.1.norm1", CLASS_TOKEN),
    "vit_gap": Network(AverageViT, 18, "blocks.0", "blocks.1.norm1", TOKENS),
    "swin": Network(Swin, 19, "stage1", "stage2.1.norm1", CHANNELS_LAST),
    "convnext": Network(ConvNext, 9, "block2", "block3", CHANNELS_FIRST),
    "hybrid": Network(Hybrid, 32, "conv1", "conv2", CHANNELS_FIRST),
    "mixer": Network(Mixer, 11, "blocks.0", "blocks.1.norm1", TOKENS),
}


def build(name: str) -> nn.Module:
    """The named network in evaluation mode, float32, with weights drawn from its seed."""
    network = NETWORKS[name]
    module = network.make().eval()
    generator = torch.Generator().manual_seed(network.seed)

    def normal(tensor: Tensor, std: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * std)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if tensor.dtype != torch.float32 or key.endswith("mask"):
                continue
            if key.endswith(("running_mean", "bias")):
                normal(tensor, 0.2)
            elif key.endswith("running_var"):
                uniform(tensor, 0.5, 2.0)
            elif tensor.ndim == 1:
                uniform(tensor, 0.5, 1.5)
            elif "weight" in key:
                normal(tensor, (2.0 / tensor[0].numel()) ** 0.5)
            else:
                normal(tensor, 0.5)
        final = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
        final.weight.mul_(2.0)
    return module


def picture(name: str) -> Tensor:
    """Model-ready x (N, 3, H, W) float32: blobs and noise, in sixteenths so that it compresses."""
    generator = torch.Generator().manual_seed(1000 + NETWORKS[name].seed)
    n, c, h, w = INPUT_SHAPE
    blobs = functional.interpolate(torch.randn(n, c, 4, 5, generator=generator), (h, w), mode="bicubic")
    return ((blobs + 0.4 * torch.randn(INPUT_SHAPE, generator=generator)) * 16).round() / 16
