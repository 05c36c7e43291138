"""The metrics by name: what each is called in a table, and with which conventions of the papers it is computed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..errors import ImageError, UserError, did_you_mean
from ..features import lpips_network
from ..options import validate
from ..options.base import Options
from ..registry import METRICS, OneOf, register_metric
from . import measures
from .measures import ImagePair

LPIPS_BACKBONES = ("alex", "squeeze", "vgg")


@dataclass(frozen=True)
class Heading:
    """What people call a measure, as in "PSNR on luma, dB, higher is better"."""

    title: str
    unit: str = ""
    higher_is_better: bool = True

    @property
    def remark(self) -> str:
        """What stands behind the title: unit and direction."""
        direction = "higher is better" if self.higher_is_better else "lower is better"
        return f"{self.unit}, {direction}" if self.unit else direction

    def best(self, values: Iterable[float]) -> float:
        """The best of some values."""
        return max(values) if self.higher_is_better else min(values)


class Metric(Options):
    """One measure of an image against another, or of an image alone; the first sentence of the docstring stands in reports.

    Attributes:
        title: what people call it, in the headings and plots of the report; its label where there is none.
        unit: of its values, as in dB.
        higher_is_better: False for distances.
        digits: decimals in a table.
        cuts_border: whether ``measure`` leaves out a border of ``scale`` pixels, as the label then says (psnr_y_b4).
    """

    type: str = Field(description="Name of the metric.")

    title: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = True
    digits: ClassVar[int] = 3
    cuts_border: ClassVar[bool] = False

    def measure(self, pair: ImagePair, scale: int) -> Tensor:
        """From the uint8 images (B, 3, H, W) of a pair to (B,) float64."""
        raise NotImplementedError

    def resolved(self) -> Metric:
        """The metric that is measured where this one leaves something open."""
        return self


MetricOptions = Annotated[Metric, OneOf(METRICS, short=True)]
"""A metric in options: its name, or its name and options of its own."""


@dataclass(frozen=True)
class ScaledMetric:
    """A metric at an upscaling factor, as tables show it."""

    metric: Metric
    scale: int

    @property
    def label(self) -> str:
        """The name with its convention, as in psnr_y_b4."""
        return f"{self.metric.type}_b{self.scale}" if self.metric.cuts_border else self.metric.type

    @property
    def text(self) -> str:
        """What it is, in a sentence."""
        what = " ".join((self.metric.__doc__ or "").split("\n\n")[0].split()).removesuffix(".")
        return f"{what}, a border of {self.scale} cut off." if self.metric.cuts_border else f"{what}."

    @property
    def heading(self) -> Heading:
        """What people call it."""
        return Heading(self.metric.title or self.label, self.metric.unit, self.higher_is_better)

    @property
    def higher_is_better(self) -> bool:
        """False for distances."""
        return self.metric.higher_is_better

    @property
    def digits(self) -> int:
        """Decimals in a table."""
        return self.metric.digits

    def measure(self, pair: ImagePair) -> Tensor:
        """From a pair of B images to (B,).

        Raises:
            ValueError: the images cannot be measured, or the metric gives something of another shape.
        """
        values = self.metric.measure(pair, self.scale)
        if values.shape != pair.sr.shape[:1]:
            raise ImageError(f"the metric {self.metric.type} gave {tuple(values.shape)}, not one value for each image")
        return values


def make_metric(metric: str | Metric, scale: int) -> ScaledMetric:
    """A metric, or the one of this name (see :data:`METRICS`), at this scale.

    Raises:
        UserError: there is no metric of this name, or it has options that must be given.
    """
    if isinstance(metric, str):
        if metric not in METRICS:
            raise UserError(
                f"there is no metric '{metric}'.{did_you_mean(metric, METRICS)} Allowed: {', '.join(METRICS)}."
            )
        metric = validate(METRICS[metric], {"type": metric}, f"metric {metric}")
    return ScaledMetric(metric.resolved(), scale)


def find_lpips(choice: str) -> tuple[str | None, str | None]:
    """Choose the LPIPS backbone.

    Args:
        choice: alex, vgg or squeeze, downloaded if need be; 'auto': the first of alex, squeeze, vgg that is on this machine,
            nothing is downloaded; 'none'.

    Returns:
        The backbone, or None, and a sentence about what is missing, or None.
    """
    if choice == "none":
        return None, None
    reasons = []
    for network in LPIPS_BACKBONES if choice == "auto" else (choice,):
        try:
            lpips_network(network, download=choice != "auto")
            return network, None
        except UserError as error:
            reasons.append(f"LPIPS is n/a: {error}")
    advice = " With a network, --lpips alex downloads them." if choice == "auto" else ""
    return None, reasons[0] + advice


@register_metric
class PSNRY(Metric):
    """PSNR in dB on Y of BT.601 (16-235), not rounded."""

    type: Literal["psnr_y"] = Field(description="Name of the metric.")

    title = "PSNR on luma"
    unit = "dB"
    cuts_border = True

    def measure(self, pair: ImagePair, scale: int) -> Tensor:
        """See :func:`measures.psnr_y`."""
        return measures.psnr(*pair.luma(scale))


@register_metric
class PSNRRGB(Metric):
    """PSNR in dB on RGB."""

    type: Literal["psnr_rgb"] = Field(description="Name of the metric.")

    title = "PSNR on RGB"
    unit = "dB"
    cuts_border = True

    def measure(self, pair: ImagePair, scale: int) -> Tensor:
        """See :func:`measures.psnr_rgb`."""
        return measures.psnr_rgb(pair.sr, pair.hr, scale)


@register_metric
class SSIMY(Metric):
    """SSIM on Y of BT.601 (16-235), not rounded, Gaussian window 11x11, sigma 1.5, no padding."""

    type: Literal["ssim_y"] = Field(description="Name of the metric.")

    title = "SSIM on luma"
    digits = 4
    cuts_border = True

    def measure(self, pair: ImagePair, scale: int) -> Tensor:
        """See :func:`measures.ssim_y`."""
        return measures.ssim(*pair.luma(scale))


@register_metric
class SSIMRGB(Metric):
    """SSIM on RGB, Gaussian window 11x11, sigma 1.5, no padding."""

    type: Literal["ssim_rgb"] = Field(description="Name of the metric.")

    title = "SSIM on RGB"
    digits = 4
    cuts_border = True

    def measure(self, pair: ImagePair, scale: int) -> Tensor:
        """See :func:`measures.ssim_rgb`."""
        return measures.ssim_rgb(pair.sr, pair.hr, scale)


class _LPIPS(Metric):
    higher_is_better = False
    digits = 4

    def measure(self, pair: ImagePair, scale: int) -> Tensor:
        return measures.lpips_distance(pair.sr, pair.hr, self.type.removeprefix("lpips_"))


@register_metric
class AnyLPIPS(Metric):
    """LPIPS v0.1 with the first backbone of alex, squeeze and vgg whose weights are on this machine."""

    type: Literal["lpips"] = Field(description="Name of the metric.")

    higher_is_better = False

    def resolved(self) -> Metric:
        """The metric of that backbone.

        Raises:
            UserError: the weights of none are here; says what to do.
        """
        backbone, missing = find_lpips("auto")
        if backbone is None:
            raise UserError(missing)
        return make_metric(f"lpips_{backbone}", 1).metric


@register_metric
class LPIPSAlex(_LPIPS):
    """LPIPS v0.1, backbone alex, on the whole RGB image."""

    type: Literal["lpips_alex"] = Field(description="Name of the metric.")

    title = "LPIPS (AlexNet)"


@register_metric
class LPIPSSqueeze(_LPIPS):
    """LPIPS v0.1, backbone squeeze, on the whole RGB image."""

    type: Literal["lpips_squeeze"] = Field(description="Name of the metric.")

    title = "LPIPS (SqueezeNet)"


@register_metric
class LPIPSVGG(_LPIPS):
    """LPIPS v0.1, backbone vgg, on the whole RGB image."""

    type: Literal["lpips_vgg"] = Field(description="Name of the metric.")

    title = "LPIPS (VGG)"


@register_metric
class VGG19Distance(Metric):
    """Distance of VGG19's maps (relu1_2, relu2_2, relu3_4), of unit length over the channels, on the whole RGB image."""

    type: Literal["vgg19_distance"] = Field(description="Name of the metric.")

    title = "VGG19 distance"
    higher_is_better = False
    digits = 4

    def measure(self, pair: ImagePair, scale: int) -> Tensor:
        """See :func:`measures.vgg19_distance`."""
        return measures.vgg19_distance(pair.sr, pair.hr)


@register_metric
class NIQE(Metric):
    """NIQE of the image alone (BasicSR's), on Y."""

    type: Literal["niqe"] = Field(description="Name of the metric.")

    title = "NIQE"
    higher_is_better = False
    cuts_border = True

    def measure(self, pair: ImagePair, scale: int) -> Tensor:
        """See :func:`measures.niqe`."""
        return measures.niqe(pair.sr, scale)
