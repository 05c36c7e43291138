"""The only door to ``spandrel``, which recognises the community's checkpoints by their content."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .base import ModelSpec, SRModel, StateDict


def load_foreign(state: StateDict, path: Path) -> SRModel:
    """Rebuild a network from a checkpoint of any architecture that spandrel knows.

    Raises:
        UserError: spandrel does not recognise it, or it is not an RGB super-resolution network.
    """
    from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

    try:
        descriptor = ModelLoader(device="cpu").load_from_state_dict(dict(state))
    except UnsupportedModelError as error:
        raise UserError(
            f"{path}: no known network has these weights. For a network that this package builds by name, "
            "say which one (teacher.architecture in the options)."
        ) from error
    if (
        not isinstance(descriptor, ImageModelDescriptor)
        or descriptor.input_channels != 3
        or descriptor.output_channels != 3
    ):
        raise UserError(f"{path}: {descriptor.architecture.name} is not a network from RGB to RGB.")
    needs = descriptor.size_requirements
    spec = ModelSpec(
        name=f"{path.stem} ({descriptor.architecture.name})",
        scale=descriptor.scale,
        size_multiple=needs.multiple_of or 1,
        min_size=needs.minimum or 1,
    )
    return SRModel(descriptor.model.eval(), spec)
