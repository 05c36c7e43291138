"""The folder of a run: ``<output_dir>/<name>/``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import UserError
from ..files import write_text
from ..options import RunOptions, dump_options, validate
from .checkpoint import all_checkpoints, step_of
from .schedule import decay_start, learning_rate_at, weight_at

# Options that may differ between a run and its continuation without a word (total_steps: see _jumps).
_HARMLESS = (
    "device",
    "train.total_steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "data.workers",
)
# Options without which the saved state does not fit.
_FIXED = ("scale", "student", "peers")


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie."""

    path: Path

    @property
    def options(self) -> Path:
        """The resolved options."""
        return self.path / "options.yml"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def initial(self, name: str = "student") -> Path:
        """The student of this name before the first step."""
        return self.path / ("initial.safetensors" if name == "student" else f"initial_{name}.safetensors")

    def trained(self, name: str = "student") -> Path:
        """The trained student of this name."""
        return self.path / f"{name}.safetensors"


def open_run(options: RunOptions, resume: bool) -> tuple[RunFolder, Path | None, list[str]]:
    """Make or continue the folder of a run. A folder with nothing but options, of a run that never began, is taken anew.

    Returns:
        The folder, the checkpoint to go on from (None: from the start), and sentences to tell the user.

    Raises:
        UserError: the folder is there already and ``resume`` is not asked for; or there is nothing to resume; or the
            options changed so that the saved state does not fit.
    """
    folder = RunFolder(Path(options.output_dir) / options.name)
    if not resume:
        if folder.path.exists() and any(path != folder.options for path in folder.path.iterdir()):
            raise UserError(
                f"{folder.path} is there already: continue it with --resume, choose another name (name=...), or delete the folder."
            )
        write_text(folder.options, dump_options(options))
        return folder, None, []
    if not folder.options.exists():
        raise UserError(f"nothing to resume: there is no run in {folder.path}. Start it without --resume.")
    started = _started(folder)
    checkpoint = _where_to_go_on(started, options, all_checkpoints(folder.checkpoints))
    said = _compare(started, options, folder, checkpoint)
    write_text(folder.options, dump_options(options))
    if checkpoint is None:
        said.append(f"{folder.checkpoints} holds no checkpoint yet: starting from step 0.")
    return folder, checkpoint, said


def _started(folder: RunFolder) -> RunOptions:
    """The options that the run was started with, or went on with last."""
    try:
        tree = yaml.safe_load(folder.options.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{folder.options} cannot be read ({error}).") from error
    return validate(RunOptions, tree, str(folder.options))


def _where_to_go_on(before: RunOptions, now: RunOptions, checkpoints: list[Path]) -> Path | None:
    """The last checkpoint; of a wsd run that is prolonged, the last one at which the longer run would be where the shorter one was."""
    if before.schedule == now.schedule and now.schedule.type == "wsd":
        limit = min(decay_start(options.train.total_steps, options.schedule) for options in (before, now))
        if before.train.total_steps != now.train.total_steps:
            checkpoints = [path for path in checkpoints if step_of(path) <= limit] or checkpoints
    return checkpoints[-1] if checkpoints else None


def _compare(started: RunOptions, options: RunOptions, folder: RunFolder, checkpoint: Path | None) -> list[str]:
    """Sentences about options that differ from those the run was started with."""
    before, now = _flat(started.model_dump(mode="json")), _flat(options.model_dump(mode="json"))
    said = [] if checkpoint is None else _jumps(started, options, step_of(checkpoint))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key) or key.startswith(_HARMLESS):
            continue
        change = f"{key} was {before.get(key)!r}, is now {now.get(key)!r}"
        if key.split(".")[0] in _FIXED:
            raise UserError(f"cannot resume {folder.path} with other options: {change}.")
        said.append(f"changed since the run was started: {change}.")
    return said


def _jumps(before: RunOptions, now: RunOptions, step: int) -> list[str]:
    """What another ``total_steps`` does at the step where the run goes on: it moves everything that is planned to its end."""
    if before.train.total_steps == now.train.total_steps or step >= now.train.total_steps:
        return []
    rates = [
        learning_rate_at(step, options.optimizer.learning_rate, options.train.total_steps, options.schedule)
        for options in (before, now)
    ]
    said = []
    if rates[0] != rates[1]:
        said.append(
            f"train.total_steps was {before.train.total_steps}, is now {now.train.total_steps}: at step {step} the learning rate jumps from "
            f"{rates[0]:.3g} to {rates[1]:.3g}, so the result is not that of a run of {now.train.total_steps} steps. With schedule.type "
            "wsd it would be, until its decay begins."
        )
    for old, new in zip(before.losses, now.losses):
        weights = weight_at(step, old, before.train.total_steps), weight_at(step, new, now.train.total_steps)
        if old == new and weights[0] != weights[1]:
            said.append(f"with it, the weight of {new.label} jumps from {weights[0]:.3g} to {weights[1]:.3g}.")
    return said


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, inner in items:
        flat |= _flat(inner, f"{prefix}.{key}" if prefix else key)
    return flat
