"""Shared building blocks: residual block, resampling, attention, embeddings."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Offered = tuple[Tensor, Tensor]  # the keys and values of a context


def zero_init(layer: nn.Module) -> nn.Module:
    """Zeroes a layer, so that the residual branch it ends starts at zero (DiT, arXiv 2212.09748, section 3.2)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class GroupNorm(nn.GroupNorm):
    """torch's group norm, which returns the type that it is given. Its statistics are always float32.

    On a CPU all of it is: the channels_last kernel takes two to four times as long in bfloat16. On CUDA autocast would
    return float32, and the layers after it would work on twice the bytes.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return super().forward(x.float()).to(x.dtype)
        with torch.autocast("cuda", enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """torch's layer norm, which on CUDA returns the type that it is given, as `GroupNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_cuda:
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def normalisation(kind: str, channels: int) -> nn.Module:
    """Returns, for `group`, a group norm of up to 32 groups of at least 4 channels; for `none`, the identity."""
    if kind == "none":
        return nn.Identity()
    groups = next(g for g in (32, 16, 8, 4, 2, 1) if (channels % g == 0 and channels // g >= 4) or g == 1)
    return GroupNorm(groups, channels)


def _silu(fresh: Tensor) -> Tensor:
    """Returns SiLU of a tensor that nobody else holds: in its own memory if no gradient is needed, as below."""
    return F.silu(fresh, inplace=not torch.is_grad_enabled())


def _plus(x: Tensor, fresh: Tensor) -> Tensor:
    """Returns x + fresh, bit for bit, without new memory if nobody else holds `fresh`."""
    return x + fresh if torch.is_grad_enabled() or x.dtype != fresh.dtype else fresh.add_(x)


def _scaled(fresh: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Returns fresh * factor + shift, bit for bit, without new memory if nobody else holds `fresh`."""
    if torch.is_grad_enabled() or not fresh.dtype == factor.dtype == shift.dtype:
        return fresh * factor + shift
    return fresh.mul_(factor).add_(shift)


class ResidualBlock(nn.Module):
    """Residual block: norm - SiLU - conv, twice, plus a skip.

    With `embedding`, a vector (b, embedding) scales and shifts the second normalised map (FiLM; "AdaGN" in Dhariwal and
    Nichol, arXiv 2105.05233).
    """

    def __init__(
        self, inputs: int, outputs: int, embedding: int | None = None, norm: str = "group", dropout: float = 0.0
    ):
        super().__init__()
        self.norm1, self.conv1 = normalisation(norm, inputs), conv3x3(inputs, outputs)
        self.norm2, self.conv2 = normalisation(norm, outputs), zero_init(conv3x3(outputs, outputs))
        self.film = zero_init(nn.Linear(embedding, 2 * outputs)) if embedding else None
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, h, w)."""
        h = self.norm1(x)
        h = self.norm2(self.conv1(F.silu(x) if h is x else _silu(h)))
        if self.film is not None:
            scale, shift = rearrange(self.film(embedding), "b (two c) -> two b c 1 1", two=2)
            h = _scaled(h, 1 + scale, shift)
        return _plus(self.skip(x), self.conv2(self.dropout(_silu(h))))


class Downsample(nn.Module):
    """2x2 convolution of stride 2: (b, inputs, h, w) -> (b, outputs, h / 2, w / 2)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Module):
    """1x1 convolution and pixel shuffle: (b, inputs, h, w) -> (b, outputs, 2h, 2w).

    This takes a ninth of the arithmetic of nearest + 3x3. The four pixels of a cell start equal, so it starts
    without a checkerboard pattern (arXiv 1707.02937).
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4 * outputs, 1)
        assert self.conv.bias is not None
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, dim=0))
            self.conv.bias.copy_(self.conv.bias[::4].repeat_interleave(4, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class Attention(nn.Module):
    """Multi-head attention of queries (b, n, width) over a context (b, m, context); self-attention without one.

    `mask` (b, m) bool marks the context tokens that count. On a CPU the products are written out: there the backward
    pass of the fused kernel takes longer than all convolutions at 64 tokens. `fused=False` writes them out
    everywhere: the fused kernels cannot be differentiated twice.
    """

    def __init__(self, width: int, heads: int, context: int | None = None, fused: bool = True):
        super().__init__()
        self.heads, self.fused = heads, fused
        self.to_query = nn.Linear(width, width, bias=False)
        self.to_key_value = nn.Linear(context or width, 2 * width, bias=False)
        self.to_out = zero_init(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.attend(x, self.keys_and_values(x if context is None else context), mask)

    def keys_and_values(self, context: Tensor) -> Offered:
        """Returns what a context (b, m, context) offers to any queries: keys and values, each (b, heads, m, d)."""
        key_value = self.to_key_value(context)
        key, value = rearrange(key_value, "b m (two h d) -> two b h m d", two=2, h=self.heads)
        return key, value

    def attend(self, x: Tensor, offered: Offered, mask: Tensor | None = None) -> Tensor:
        """Does the part of `forward` after `keys_and_values`."""
        query = rearrange(self.to_query(x), "b n (h d) -> b h n d", h=self.heads)
        key, value = offered
        mask = None if mask is None else rearrange(mask, "b m -> b 1 1 m")
        if x.is_cuda and self.fused:
            out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            scale = query.shape[-1] ** -0.5
            if torch.is_grad_enabled():
                query = query * scale
            else:  # the order of a matrix product, which would copy it
                query = torch.mul(query, scale, out=query.new_empty(query.shape))
            weights = query @ key.transpose(-1, -2)
            if mask is not None:
                weights = weights.masked_fill(~mask, -1e9)
            out = weights.softmax(dim=-1).to(value.dtype) @ value
        return self.to_out(rearrange(out, "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """GEGLU feed-forward layer (arXiv 2002.05202): (..., width) -> (..., width)."""

    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.enter = nn.Linear(width, 2 * expansion * width)
        self.leave = zero_init(nn.Linear(expansion * width, width))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.enter(x).chunk(2, dim=-1)
        return self.leave(value * F.gelu(gate))


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention to the context, feed-forward, each pre-normalised and residual.

    `expansion` 0 leaves the feed-forward out: the convolutions around it mix the channels too.
    """

    def __init__(self, width: int, heads: int, context: int, expansion: int):
        super().__init__()
        self.norm1, self.self_attention = LayerNorm(width), Attention(width, heads)
        self.norm2, self.cross_attention = LayerNorm(width), Attention(width, heads, context)
        self.norm3 = LayerNorm(width) if expansion else None
        self.feed_forward = FeedForward(width, expansion) if expansion else None

    def forward(self, x: Tensor, offered: Offered, mask: Tensor) -> Tensor:
        """x: (b, n, width); offered: the context's by `cross_attention.keys_and_values`; mask: (b, m) bool."""
        x = _plus(x, self.self_attention(self.norm1(x)))
        x = _plus(x, self.cross_attention.attend(self.norm2(x), offered, mask))
        if self.norm3 is None or self.feed_forward is None:
            return x
        return _plus(x, self.feed_forward(self.norm3(x)))


class SpatialTransformer(nn.Module):
    """Transformer layers over the cells of a map (b, width, h, w) (arXiv 2112.10752, appendix E.2.1)."""

    def __init__(self, width: int, heads: int, context: int, depth: int, expansion: int):
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width, heads, context, expansion) for _ in range(depth))

    def offered(self, context: Tensor) -> list[Offered]:
        """Returns what a context (b, m, context) offers to each layer."""
        layers = (layer for layer in self.layers if isinstance(layer, TransformerLayer))
        return [layer.cross_attention.keys_and_values(context) for layer in layers]

    def forward(self, x: Tensor, offered: Sequence[Offered], mask: Tensor) -> Tensor:
        """x: (b, width, h, w); offered: as `offered` returns it; mask: (b, m) bool of the context's tokens."""
        tokens = rearrange(x, "b c h w -> b (h w) c")
        for layer, of_layer in zip(self.layers, offered, strict=True):
            tokens = layer(tokens, of_layer, mask)
        return rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])


def sinusoidal(positions: Tensor, width: int, longest: float = 10_000.0) -> Tensor:
    """Returns sines and cosines at geometric frequencies (arXiv 1706.03762, 3.5): (b,) -> (b, width) float32."""
    half = width // 2
    frequencies = torch.exp(-math.log(longest) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)
