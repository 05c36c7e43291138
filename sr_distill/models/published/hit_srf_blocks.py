"""The residual group of HiT-SRF: blocks with windows that grow, on tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]


class _DualFeatures(nn.Module):
    """Queries and values: a bottleneck of convolutions times a linear map, on the image mirrored up to whole windows.

    The 1x1 convolutions before the mirroring commute with it. What comes after is larger than the image, for a small one
    by any factor: it is no feature map of the image, and is run by ``forward`` so that hooks do not take it for one.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        narrow = embed_dim // 5
        self.conv = nn.Sequential(
            nn.Conv2d(embed_dim, narrow, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(narrow, narrow, 3, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(narrow, embed_dim, 1),
        )
        self.linear = nn.Conv2d(embed_dim, embed_dim, 1)

    def forward(self, x: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to queries and values, each (B, C/2, H', W') with H' and W' multiples of the window."""
        out = _mirror(self.conv[0](x), window)
        for layer in self.conv[1:]:
            out = layer.forward(out)
        query, value = (out * _mirror(self.linear(x), window)).chunk(2, dim=1)
        return query, value


class _PositionBias(nn.Module):
    """A small network from the distance of two places to a bias for each head (dynamic position bias of CrossFormer)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.pos_proj = nn.Linear(2, width)
        for index, out in enumerate((width, width, num_heads), start=1):
            self.add_module(f"pos{index}", nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, out)))

    def forward(self, window: int) -> Tensor:
        """Biases ((2 window - 1)^2, heads) for all distances inside a window, from 1 - window to window - 1."""
        steps = torch.arange(1 - window, window, device=self.pos_proj.weight.device)
        table = self.pos_proj(torch.cartesian_prod(steps, steps).to(self.pos_proj.weight.dtype))
        for index in (1, 2, 3):
            table = self.get_submodule(f"pos{index}")(table)
        return table


class _Correlation(nn.Module):
    """Spatial-channel correlation (SCC): attention without softmax in windows, linear in the size of the window."""

    def __init__(self, embed_dim: int, num_heads: int, window: int, base_window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.cells = min(window, base_window)
        self.qv = _DualFeatures(embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.spatial_linear = nn.Linear((window // self.cells) ** 2, 1)
        self.pos = _PositionBias(embed_dim // 16, num_heads)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Tokens (B, H W, C) of an image of this size to tokens of the same shape."""
        query, value = self.qv(to_map(tokens, size), self.window)
        padded = query.shape[-2:]
        query, value = (_to_windows(x, self.window) for x in (query, value))
        out = torch.cat([self._spatial(query, value), self._channel(query, value)], dim=-1)
        return self.proj(_from_windows(out, self.window, padded, size))

    def _spatial(self, query: Tensor, value: Tensor) -> Tensor:
        """(Q V' / d + bias) V for each head, V reduced to one row a cell; (N, window^2, C/2) in and out.

        Without a softmax, Q (V' V) is the same and much smaller on the way.
        """
        query, value = (x.unflatten(2, (self.num_heads, -1)) for x in (query, value))
        value = self._per_cell(value)
        moments = torch.einsum("nkhd,nkhe->nhde", value, value) / value.shape[-1]
        bias = self._bias()
        out = torch.einsum("nlhd,nhde->nlhe", query, moments) + torch.einsum("hlk,nkhe->nlhe", bias, value)
        return out.flatten(2)

    def _per_cell(self, value: Tensor) -> Tensor:
        """(N, window^2, heads, d) to (N, cells^2, heads, d): a learned weighted sum over the places of each cell."""
        ratio = self.window // self.cells
        value = value.unflatten(1, (self.cells, ratio, self.cells, ratio)).permute(0, 1, 3, 5, 6, 2, 4)
        return self.spatial_linear(value.flatten(5).flatten(1, 2)).squeeze(-1)

    def _bias(self) -> Tensor:
        """Biases (heads, window^2, cells^2) between the places of a window and its cells, each the mean over a cell."""
        distances, ratio = 2 * self.window - 1, self.window // self.cells
        table = self.pos(self.window).t().unflatten(1, (distances, distances))
        table = F.avg_pool2d(table, ratio, stride=1)  # the means over all cells, from whichever place
        places = torch.arange(self.window, device=table.device)
        index = places[:, None] - places[::ratio] + self.window - ratio
        return table[:, index[:, None, :, None], index[None, :, None, :]].flatten(3, 4).flatten(1, 2)

    @staticmethod
    def _channel(query: Tensor, value: Tensor) -> Tensor:
        """V (Q' V / L)' with L = window^2, all heads together; (N, L, C/2) in and out."""
        correlation = query.transpose(1, 2) @ value / query.shape[1]
        return value @ correlation.transpose(1, 2)


class _DepthwiseConv(nn.Module):
    """A 5x5 depthwise convolution of tokens and GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Sequential(nn.Conv2d(width, width, 5, padding=2, groups=width), nn.GELU())

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        return to_tokens(self.depthwise_conv(to_map(tokens, size)))


class _FeedForward(nn.Module):
    """Two linear layers with a depthwise convolution as a skip between them (ConvFFN of SRFormer)."""

    def __init__(self, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.dwconv = _DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        out = F.gelu(self.fc1(tokens))
        return self.fc2(out + self.dwconv(out, size))


class Block(nn.Module):
    """Hierarchical transformer block: correlation and feed-forward, each normalised behind and with a skip."""

    def __init__(self, embed_dim: int, num_heads: int, window: int, base_window: int, hidden: int) -> None:
        super().__init__()
        self.correlation = _Correlation(embed_dim, num_heads, window, base_window)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.mlp = _FeedForward(embed_dim, hidden)
        self.norm2 = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Tokens (B, H W, C) to the same shape."""
        tokens = tokens + self.norm1(self.correlation(tokens, size))
        return tokens + self.norm2(self.mlp(tokens, size))


class _Blocks(nn.Module):
    """Blocks one after the other, tokens in and out."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, size)
        return tokens


class Group(nn.Module):
    """Residual hierarchical transformer blocks: blocks of growing windows, a 3x3 convolution and a skip."""

    def __init__(self, embed_dim: int, blocks: list[Block]) -> None:
        super().__init__()
        self.residual_group = _Blocks(blocks)
        self.conv = nn.Conv2d(embed_dim, embed_dim, 3, padding=1)

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        """Tokens (B, H W, C) to the same shape."""
        return tokens + to_tokens(self.conv(to_map(self.residual_group(tokens, size), size)))


def to_tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Tensor, size: Size) -> Tensor:
    """(B, H W, C) to (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, size)


def _mirror(x: Tensor, multiple: int) -> Tensor:
    """Continue (B, C, H, W) at the right and bottom up to a multiple, mirrored about its last pixel as often as needed."""
    for dim in (-2, -1):
        size = x.shape[dim]
        padded = -(-size // multiple) * multiple
        if padded != size:
            period = max(2 * (size - 1), 1)
            index = torch.arange(padded, device=x.device) % period
            x = x.index_select(dim, torch.minimum(index, period - index) if size > 1 else index)
    return x


def _to_windows(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to the windows (N, side^2, C)."""
    x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)


def _from_windows(windows: Tensor, side: int, padded: Size, size: Size) -> Tensor:
    """Windows (N, side^2, C) of padded images to the tokens (B, H W, C) of the images without their padding."""
    rows, columns = (length // side for length in padded)
    x = windows.unflatten(1, (side, side)).unflatten(0, (-1, rows, columns))
    x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
    return x[:, : size[0], : size[1]].flatten(1, 2)
