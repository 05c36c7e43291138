"""Bring an image to any size by antialiased bicubic, as its rows come."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..data.bicubic import taps
from .rows import Pixels, Rows, Window, in_type, to_float

_STEP = 64  # rows of the output at once


def resized(image: Rows, height: int, width: int, dtype: type) -> Rows:
    """The image with ``height`` rows and ``width`` columns, as MATLAB's ``imresize`` makes them; with alpha, premultiplied meanwhile.

    Of the input no more rows are in memory than the kernel of ``_STEP`` output rows reaches.

    Args:
        dtype: uint8, uint16 or float32.
    """
    down_index, down_weight = _taps(image.height, height)
    across = _taps(image.width, width)
    # The first row that an output row or a later one needs: at the mirrored border kernels reach up again.
    needed = down_index.min(0).values.flip(0).cummin(0).values.flip(0)

    def bands() -> Iterator[Pixels]:
        window = Window(image)
        for row in range(0, height, _STEP):
            index, weight = down_index[:, row : row + _STEP], down_weight[:, row : row + _STEP]
            first, stop = int(needed[row]), int(index.max()) + 1
            strip = torch.from_numpy(to_float(window.rows(first, stop)))
            narrow = _mix(_premultiplied(strip), across, 1)
            yield in_type(_of_premultiplied(_mix(narrow, (index - first, weight), 0)).numpy(), dtype)

    return Rows(height, width, image.channels, np.dtype(dtype), bands)


def _taps(length: int, size: int) -> tuple[Tensor, Tensor]:
    index, weight = taps(length, size, size / length)
    return index, weight.float()


def _mix(image: Tensor, kernel: tuple[Tensor, Tensor], dim: int) -> Tensor:
    index, weight = kernel
    shape = (-1, 1, 1) if dim == 0 else (1, -1, 1)
    out = image.index_select(dim, index[0]) * weight[0].view(shape)
    for one, factor in zip(index[1:], weight[1:]):
        out.addcmul_(image.index_select(dim, one), factor.view(shape))
    return out


def _premultiplied(image: Tensor) -> Tensor:
    if image.shape[2] not in (2, 4):
        return image
    return torch.cat([image[:, :, :-1] * image[:, :, -1:], image[:, :, -1:]], dim=2)


def _of_premultiplied(image: Tensor) -> Tensor:
    if image.shape[2] not in (2, 4):
        return image.clamp_(0, 1)
    alpha = image[:, :, -1:]
    color = (image[:, :, :-1] / alpha.clamp(min=1e-6)).clamp(
        0, 1
    )  # both overshoot at edges alike: alpha is clipped after
    return torch.cat([color, alpha.clamp(0, 1)], dim=2)
