"""What the options of every network have in common; the class of each lies beside its code, in ``models/``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from ..registry import ARCHITECTURES, OneOf
from .base import Options

if TYPE_CHECKING:
    from torch import Tensor, nn

Color = Annotated[
    Literal["rgb", "y"],
    Field(description="rgb: the network upscales RGB. y: it upscales luma (BT.601); chroma is upscaled by bicubic."),
]
Width = Annotated[int, Field(ge=1, le=1024)]
Depth = Annotated[int, Field(ge=1, le=256)]


class Architecture(Options):
    """A network family: its fields are the options, its attributes say what it promises, and ``build`` makes the network.

    Attributes:
        scales: upscaling factors it can be built for.
        value_range: the network's own range of values is [0, value_range].
        min_size: smallest side of an input; smaller ones are padded.
    """

    type: str = Field(description="Name of the network.")

    scales: ClassVar[tuple[int, ...]] = (2, 3, 4)
    value_range: ClassVar[float] = 1.0
    min_size: ClassVar[int] = 1

    def build(self, scale: int) -> nn.Module:
        """The network with random weights: (B, C, H, W) to (B, C, H*scale, W*scale), C 3, or 1 for ``color: y``."""
        raise NotImplementedError

    def collapsed(self) -> Architecture:
        """The options of the same network in the form that is deployed, where it has more weights in training."""
        return self

    def size_multiple(self, scale: int) -> int:
        """Inputs are padded to a multiple of this."""
        return 1

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor]) -> tuple[dict[str, Any], tuple[int, ...]] | None:
        """Options and possible scales read off the shapes of a published checkpoint, None if it is another network's.

        May raise KeyError, IndexError or ValueError, which count as None.
        """
        return None


ArchitectureOptions = Annotated[Architecture, OneOf(ARCHITECTURES)]
"""The options of a network, chosen by ``type``."""
