"""Whatever a user may name as a model: of the zoo, a file, a training run, or an exported folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from ..infer import Scale, Upscaler, Upscalers
from ..models import SRModel, tells_itself
from ..options import ArchitectureOptions
from ..zoo import family, find_file, open_model
from .runtime import in_runtime, is_exported, open_exported, read_card


def open_in(
    name: str, scale: int | None = None, runtime: str | None = None, architecture: ArchitectureOptions | None = None
) -> SRModel:
    """Open a model by :func:`sr_distill.zoo.open_model`, or an exported one; in ``runtime`` where that is given.

    Args:
        architecture: the network of a checkpoint that may not tell; files of ours tell themselves.

    Raises:
        UserError: there is no such model, it cannot be read, is for another scale, or for another runtime.
    """
    path = Path(name).expanduser()
    if not (path.exists() and is_exported(path)):
        told = architecture is None or tells_itself(find_file(name))
        model = open_model(name, scale, None if told else architecture)
        return model if runtime in (None, "torch") else in_runtime(model, runtime)
    model, made_for = open_exported(path), read_card(path)["format"]
    if runtime not in (None, made_for):
        raise UserError(f"{name} was exported for {made_for}, and --runtime is {runtime}.")
    if scale not in (None, model.spec.scale):
        raise UserError(f"{name} is a network for scale {model.spec.scale}, but scale {scale} is asked for.")
    return model


def open_for(
    name: str,
    scale: Scale | None,
    prepare: Callable[[SRModel], Upscaler],
    runtime: str | None = None,
    architecture: ArchitectureOptions | None = None,
) -> tuple[Upscalers, Scale]:
    """The networks that bring images to any scale: of the zoo the model's family, else the model alone; each is opened when it is needed.

    Args:
        scale: what is wanted; None: the model's own. It also tells the scale of a checkpoint that is the same for several.
        prepare: says how a network is run.

    Returns:
        Networks by scale, and the scale.

    Raises:
        UserError: as :func:`open_in`.
    """
    kin = family(name)
    if kin and scale is not None:
        return Upscalers(list(kin), lambda each: prepare(open_in(kin[each], None, runtime, architecture))), scale
    try:
        model = open_in(name, None, runtime, architecture)
    except UserError:
        if scale is None or scale.factor is None or scale.factor != int(scale.factor):
            raise
        model = open_in(name, int(scale.factor), runtime, architecture)
    own, upscaler = model.spec.scale, prepare(model)
    return Upscalers([own], lambda each: upscaler), scale or Scale(float(own))
