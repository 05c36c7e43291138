"""The folder of a run: ``<output_dir>/<name>/``."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import UserError
from ..files import atomic_path, is_temporary, write_text
from ..options import RunOptions, dump_options, validate
from .checkpoint import all_checkpoints, load_checkpoint, step_of
from .lock import LOCK
from .schedule import decay_start, learning_rate_at, weight_at

# Options that may differ between a run and its continuation without a word (total_steps: see _jumps).
_HARMLESS = (
    "device",
    "train.total_steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.shares_every",
    "data.workers",
)
# Options that change no weight, but what is seen of it.
_SAID = ("validation",)
# Options without which the saved state does not fit.
_FIXED = ("scale", "student", "peers")
# What a run that never saved anything may have left.
_LEFTOVERS = (
    "metrics.jsonl",
    "tensorboard",
    "validation",
    "checkpoints",
    "initial*.safetensors",
    "last*.safetensors",
    "student.safetensors",
    "peer_*.safetensors",
    "options_from_step_*.yml",
)


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie."""

    path: Path

    @property
    def options(self) -> Path:
        """The resolved options that the run was started with."""
        return self.path / "options.yml"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def initial(self, name: str = "student") -> Path:
        """The student of this name before the first step."""
        return self._of("initial", name)

    def trained(self, name: str = "student") -> Path:
        """The student of this name that was best in validation; without one, the last."""
        return self.path / f"{name}.safetensors"

    def last(self, name: str = "student") -> Path:
        """The student of this name as it was at the last checkpoint."""
        return self._of("last", name)

    def keep_trained(self, names: Collection[str], step: int) -> list[Path]:
        """Put students aside that came of ``step`` steps, before a run that goes on from an earlier one replaces them; where they lie.

        Raises:
            UserError: a file cannot be written.
        """
        kept = []
        for name in names:
            aside = self.path / f"{name}_step_{step:08d}.safetensors"
            if self.trained(name).exists() and not aside.exists():
                with atomic_path(aside) as temporary:
                    shutil.copyfile(self.trained(name), temporary)
                kept.append(aside)
        return kept

    def samples(self, step: int) -> Path:
        """The folder of what students made of some validation images after ``step`` steps."""
        return self.path / f"validation/step_{step:08d}"

    def samples_of(self, name: str) -> Path:
        """The folder of what bicubic or a teacher made of them."""
        return self.path / "validation" / name

    def _of(self, when: str, name: str) -> Path:
        return self.path / (f"{when}.safetensors" if name == "student" else f"{when}_{name}.safetensors")

    def write_options(self, options: RunOptions, step: int) -> None:
        """Put down with what options the run goes on from ``step``; those that it was started with stay.

        Raises:
            UserError: the file cannot be written.
        """
        text = dump_options(options)
        if not self.options.exists():
            write_text(self.options, text)
        elif self.options.read_text(encoding="utf-8") != text:
            write_text(self.path / f"options_from_step_{step:08d}.yml", text)


def open_run(
    options: RunOptions, resume: bool, allowed: Collection[str] = ()
) -> tuple[RunFolder, Path | None, list[str]]:
    """Find the folder of a run, to begin it or to go on; a run that never saved anything is begun anew. Writes no options yet.

    Args:
        allowed: keys of options that may have changed since the run was started.

    Returns:
        The folder, the checkpoint to go on from (None: from the start), and sentences to tell the user.

    Raises:
        UserError: the folder is there already and ``resume`` is not asked for; or there is nothing to resume; or an
            option changed that is not allowed to.
    """
    folder = RunFolder(Path(options.output_dir) / options.name)
    checkpoints = all_checkpoints(folder.checkpoints)
    if not resume:
        if checkpoints or _holds_other_things(folder):
            raise UserError(
                f"{folder.path} is there already: continue it with --resume, choose another name (name=...), or delete the folder."
            )
        return folder, None, []
    if not folder.options.exists():
        raise UserError(f"nothing to resume: there is no run in {folder.path}. Start it without --resume.")
    started = _started(folder)
    checkpoint, planned = _where_to_go_on(started, options, checkpoints)
    said = _compare(started, options, folder, allowed)
    if checkpoint is not None:
        said = [*_jumps(planned, options, step_of(checkpoint)), *said]
    if checkpoint is None:
        said.append(f"{folder.checkpoints} holds no checkpoint yet: starting from step 0.")
    return folder, checkpoint, said


def clear_leftovers(folder: RunFolder) -> None:
    """Remove what a run left that never saved a checkpoint."""
    for path in _leftovers(folder):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _holds_other_things(folder: RunFolder) -> bool:
    """Whether there is something that a run without checkpoints does not leave."""
    if not folder.path.is_dir():
        return folder.path.exists()
    known = {folder.path / LOCK, *(_leftovers(folder) if folder.options.exists() else [])}  # else it is no run's
    return any(path not in known and not is_temporary(path) for path in folder.path.iterdir())


def _leftovers(folder: RunFolder) -> list[Path]:
    """Files of a run, by their names."""
    return [folder.options, *(path for pattern in _LEFTOVERS for path in folder.path.glob(pattern))]


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, str]:
    """By key, in words, in what two mappings differ."""
    keys = sorted(before.keys() | now.keys())
    return {
        key: f"{key} was {before.get(key)!r}, is now {now.get(key)!r}"
        for key in keys
        if before.get(key) != now.get(key)
    }


def refuse_changes(found: Mapping[str, str], allowed: Collection[str], folder: Path) -> list[str]:
    """Sentences about changes that are allowed.

    Args:
        found: by key, each change in words.
        allowed: keys; one stands for all below it, as optimizer for optimizer.learning_rate.

    Raises:
        UserError: one is not.
    """
    refused = [key for key in found if not any(f"{key}.".startswith(f"{one}.") for one in allowed)]
    if refused:
        listed = "".join(f"\n  {found[key]}" for key in refused)
        raise UserError(
            f"{folder} is not the run that it was started as:{listed}\nIts result would be that of neither. Take these back, start a run "
            f"of another name (name=...), or say that you mean it: --allow-changes {','.join([*allowed, *refused])}"
        )
    return [f"changed since the run was started: {change}." for change in found.values()]


def _started(folder: RunFolder) -> RunOptions:
    """The options that the run was started with."""
    try:
        tree = yaml.safe_load(folder.options.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{folder.options} cannot be read ({error}).") from error
    return validate(RunOptions, tree, str(folder.options))


def _where_to_go_on(started: RunOptions, now: RunOptions, checkpoints: list[Path]) -> tuple[Path | None, RunOptions]:
    """The last checkpoint, and the options that it was written under.

    Of a wsd run that is prolonged it is the last one at which the longer run would be where the shorter one was.
    """
    last = None
    for path in reversed(checkpoints):
        found = path, _planned(started, path)
        if step_of(path) <= _shared_steps(found[1], now):
            return found
        last = last or found
    return last or (None, started)


def _planned(started: RunOptions, checkpoint: Path) -> RunOptions:
    """The options a run was started with, with the ``total_steps`` that it was to have when it saved a checkpoint."""
    total_steps = load_checkpoint(checkpoint).get("total_steps", started.train.total_steps)
    return started.model_copy(update={"train": started.train.model_copy(update={"total_steps": total_steps})})


def _shared_steps(before: RunOptions, now: RunOptions) -> float:
    """How many steps of one run are those of the other, as far as the learning rate goes; infinite where it is not asked."""
    if (
        before.train.total_steps == now.train.total_steps
        or before.schedule != now.schedule
        or now.schedule.type != "wsd"
    ):
        return math.inf
    return min(decay_start(options.train.total_steps, options.schedule) for options in (before, now))


def _compare(started: RunOptions, options: RunOptions, folder: RunFolder, allowed: Collection[str]) -> list[str]:
    """Sentences about options that differ from those the run was started with."""
    found = differences(*(_flat(one.model_dump(mode="json")) for one in (started, options)))
    found = {key: change for key, change in found.items() if not key.startswith(_HARMLESS)}
    unfit = [change for key, change in found.items() if key.split(".")[0] in _FIXED]
    if unfit:
        raise UserError(f"cannot resume {folder.path} with other options: {unfit[0]}.")
    harmful = {key: change for key, change in found.items() if not key.startswith(_SAID)}
    said = refuse_changes({key: change for key, change in found.items() if key not in harmful}, _SAID, folder.path)
    return said + refuse_changes(harmful, allowed, folder.path)


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
            "wsd it would be."
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
