"""What a network promises, and the wrapper through which everybody else sees it: RGB in [0, 1], any size."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..data.bicubic import imresize, mirrored
from ..data.color import gray_to_luma, luma_to_gray, rgb_to_ycbcr, ycbcr_to_rgb
from ..data.images import to_uint8
from ..errors import ImageError
from ..options.architectures import Architecture
from .blocks import Collapsible, collapse, fill

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class ModelSpec:
    """The contract of one network.

    Attributes:
        architecture: the options that rebuild it, None for a foreign network.
        runtime: what computes it, and in which precision (``onnx int8``); None: PyTorch.
    """

    name: str
    scale: int
    color: Literal["rgb", "y"] = "rgb"
    value_range: float = 1.0
    size_multiple: int = 1
    min_size: int = 1
    architecture: Architecture | None = None
    runtime: str | None = None


class SRModel(nn.Module):
    """A super-resolution network with its contract.

    ``forward`` takes RGB (B, 3, H, W) in [0, 1] of any size and returns RGB (B, 3, H*scale, W*scale), not clipped. It converts
    to the network's value range, pads to the sizes it accepts and cuts the padding off again. For ``color: y`` the network
    upscales BT.601 luma and chroma is upscaled by bicubic, as FSRCNN and ECBSR were published; such a network upscales gray
    (B, 1, H, W) in [0, 1], too, and gives what each channel of the same image in RGB would become.

    Attributes:
        autocast: dtype to which the network itself is autocast (bfloat16); None: as the caller has it. The conversion of colours is
            computed in the dtype of the input under any autocast, and the output comes back in it.
    """

    def __init__(self, net: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.net = net
        self.spec = spec
        self.autocast: torch.dtype | None = None

    def renamed(self, name: str) -> SRModel:
        """The same network under another name (in tables)."""
        renamed = SRModel(self.net, dataclasses.replace(self.spec, name=name))
        renamed.autocast = self.autocast
        return renamed.train(self.training)

    def collapsed(self) -> SRModel:
        """The same network in the form that is deployed; itself where it has no other, or was not built by this package.

        One that rounds as its int8 export does is in that form, and goes on rounding.
        """
        architecture = self.spec.architecture
        plain = None if architecture is None else architecture.collapsed()
        return self if plain == architecture else self._as(plain)

    def unrounded(self) -> SRModel:
        """The same network in floats; itself where it is."""
        return self._as(self.spec.architecture) if self.is_quantised else self

    def _as(self, plain: Architecture) -> SRModel:
        with torch.device("meta"):  # draws nothing, which would come out of the run's random state
            net = plain.build(self.spec.scale)
        net.load_state_dict(collapse(self.net).state_dict(), assign=True)
        return SRModel(net, dataclasses.replace(self.spec, architecture=plain)).train(self.training)

    def start_from(self, other: SRModel) -> list[str]:
        """Take over the weights of a network of this one's kind: collapsed or not, for this scale or another.

        Returns:
            The weights that stay as they were, because their shapes depend on the scale.

        Raises:
            ValueError: it is another kind of network.
        """
        if other.spec == self.spec and not other.is_quantised:
            self.net.load_state_dict(other.net.state_dict())
            return []
        kinds = [dataclasses.replace(model.collapsed().spec, scale=0, size_multiple=1) for model in (self, other)]
        if kinds[0] != kinds[1] or kinds[0].architecture is None:
            raise ValueError(f"{other.spec.architecture} is another network")
        return fill(self.net, other.collapsed().unrounded().net.state_dict())

    @property
    def is_quantised(self) -> bool:
        """Whether it rounds as its int8 export does (:func:`sr_distill.models.quantised`)."""
        return any(isinstance(module, Collapsible) and module.rounds for module in self.net.modules())

    @property
    def num_parameters(self) -> int:
        """Number of weights in the form that is deployed (re-parameterised blocks collapsed)."""
        return sum(parameter.numel() for parameter in collapse(self.net).parameters())

    def forward(self, lr: Tensor) -> Tensor:
        """Upscale RGB (B, 3, H, W) in [0, 1] to RGB (B, 3, H*scale, W*scale), or gray to gray."""
        if self.spec.color == "rgb":
            return self.run(lr)
        if lr.shape[1] == 1:
            return luma_to_gray(self.run(gray_to_luma(lr)))
        ycbcr = rgb_to_ycbcr(lr)
        chroma = imresize(ycbcr[:, 1:], self.spec.scale)
        return ycbcr_to_rgb(torch.cat([self.run(ycbcr[:, :1]), chroma], dim=1))

    def run(self, image: Tensor) -> Tensor:
        """The network itself: (B, C, H, W) of the channels that it takes, any size, to (B, C, H*scale, W*scale); all values in [0, 1]."""
        height, width = image.shape[-2:]
        image = _pad(image, self.spec.size_multiple, self.spec.min_size)
        value_range = self.spec.value_range
        own = contextlib.nullcontext() if self.autocast is None else torch.autocast(image.device.type, self.autocast)
        with own:
            out = self.net(image if value_range == 1.0 else image * value_range)
        out = out.to(image.dtype)[..., : height * self.spec.scale, : width * self.spec.scale]
        return out if value_range == 1.0 else out / value_range


def upscale_uint8(model: nn.Module, lr: Tensor, device: torch.device) -> Tensor:
    """uint8 RGB (B, 3, h, w) to uint8 (B, 3, h*scale, w*scale) on ``device``, whole images at once; the model is there already.

    Raises:
        ImageError: what the network gives is not finite; rounded, it would be black.
    """
    return to_uint8(_finite(model, model(lr.to(device).float().div(255.0))))


def _finite(model: nn.Module, sr: Tensor) -> Tensor:
    if not sr.isfinite().all():
        raise ImageError(
            f"{model.spec.name} gives values that are not finite numbers: its weights are damaged, or it cannot take this image"
        )
    return sr


def bicubic_model(scale: int) -> SRModel:
    """MATLAB-like bicubic upscaling in the place of a network: the row that every table begins with."""
    return SRModel(_Bicubic(scale), ModelSpec(name="bicubic", scale=scale)).eval()


class _Bicubic(nn.Module):
    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return imresize(x, self.scale)


def _pad(image: Tensor, multiple: int, smallest: int) -> Tensor:
    """Continue the image at the right and bottom by its mirror image, as often as needed."""
    for dim in (-2, -1):
        size = image.shape[dim]
        padded = _padded(size, multiple, smallest)
        if padded != size:
            image = image.index_select(dim, mirrored(torch.arange(padded, device=image.device), size))
    return image


def _padded(size: int, multiple: int, smallest: int) -> int:
    return -(-max(size, smallest) // multiple) * multiple
