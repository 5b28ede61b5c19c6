"""What the stages of one run share: the model, the task, the layers, what they may run, and where files go."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from autoquant.artifacts import fingerprint, read_json, write_json
from autoquant.errors import StaleError, UsageError, pick
from autoquant.models.layers import Inventory, fingerprint_architecture, fingerprint_model, groups, inspect, siblings
from autoquant.models.loading import Loaded, architectures, load_model, resolve, task_for
from autoquant.models.smoothed import smoothed
from autoquant.price import choose_runtime
from autoquant.runtimes import RUNTIMES, Runtime, make_runtime, unusable
from autoquant.runtimes.assemble import Assembler
from autoquant.search import Space, allowed, load_space
from autoquant.settings import AUTO, Settings
from autoquant.tasks import TASKS, Task, make
from autoquant.values import Budget, Group, RuntimeChoice, Smoothing

CHOICE = "runtime.json"


class Progress:
    """Lines and bars on stderr; silent when `quiet`."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.notes: list[str] = []

    def say(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    def note(self, text: str) -> None:
        """Say it, and keep it for the report."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(f"  note: {text}")

    @contextmanager
    def bar(self, what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        with tqdm(
            desc=what, unit=unit, file=sys.stderr, leave=False, disable=True if self.quiet else None, dynamic_ncols=True
        ) as bar:

            def update(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield update


@dataclass
class Session:
    """One model, one task, one run folder. Everything expensive is made when it is first asked for."""

    settings: Settings
    folder: Path
    progress: Progress
    module: nn.Module | None = None
    given_task: Task | None = None
    storage: str | None = None
    """URL of the study's storage with its password, which the settings do not keep."""
    search_items: int = 0
    """Items of the search split that the search has read."""
    smoothing: Mapping[str, Any] | None = None
    """What the report says of the smoothing: `pairs` found, `smoothed` ones, `error_left` of the int8 error. None: left out."""

    def __post_init__(self) -> None:
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        if self.settings.device != "cpu" and not torch.cuda.is_available():
            raise UsageError(f"--device {self.settings.device}: torch sees no GPU here. Valid: cpu.")
        if self.settings.workers > 1 and not self.is_from_files:
            raise UsageError(
                "A module or a Task of your own cannot be built again in other processes: workers must be 1."
            )
        torch.manual_seed(self.settings.seed)

    @property
    def is_from_files(self) -> bool:
        """Whether another process can make the same from the settings."""
        return self.module is None and self.given_task is None

    @property
    def budget(self) -> Budget:
        return self.settings.to_budget()

    @cached_property
    def task_name(self) -> str:
        if self.given_task is not None:
            return self.given_task.name
        if self.settings.task is not None:
            pick(TASKS, self.settings.task, "task")
            return self.settings.task
        if self.settings.data is None:
            return "retrieval"
        if self.module is not None:
            raise UsageError("Say what the model is judged by: --task, one of " + ", ".join(TASKS) + ".")
        path = resolve(self.settings.model, revision=self.settings.revision)
        guess = task_for(path)
        if guess is None:
            raise UsageError(
                f"What {self.settings.model} is for cannot be told from its config. Give --task: {', '.join(TASKS)}."
            )
        self.progress.note(f"Task '{guess}' was guessed from the model's architecture; --task chooses another.")
        return guess

    @cached_property
    def loaded(self) -> Loaded:
        if self.module is not None:
            return Loaded(self.module.eval(), None, type(self.module).__name__, None)
        path = resolve(self.settings.model, revision=self.settings.revision)
        auto_class = TASKS[self.task_name].auto_class_for(architectures(path))
        loaded = load_model(
            self.settings.model,
            auto_class,
            trust_remote_code=self.settings.trust_remote_code,
            revision=self.settings.revision,
        )
        loaded.model.to(self.settings.device)
        return loaded

    @property
    def model(self) -> nn.Module:
        return self.loaded.model

    @cached_property
    def task(self) -> Task:
        if self.given_task is not None:
            return self.given_task
        s = self.settings
        return make(
            self.task_name, s.data, self.loaded.processor, columns=s.columns, seed=s.seed, max_length=s.max_length,
            sizes=s.sizes, metric=s.metric, test_data=s.test_data, model=self.model,
        )  # fmt: skip

    def smooth(self, wanted: Sequence[Smoothing]) -> None:
        """Go on with a copy of the model that has these scalings (see `autoquant.smoothing`); nothing was built on it yet."""
        assert "assembler" not in self.__dict__, "what the assembler built would be of other weights"
        self.loaded = replace(self.loaded, model=smoothed(self.model, wanted))

    @cached_property
    def inventory(self) -> Inventory:
        return inspect(self.model)

    @cached_property
    def runtime(self) -> Runtime:
        choice = self.runtime_choice
        name = self.settings.runtime if choice is None else choice.chosen
        runtime = make_runtime(name)
        if reason := unusable(type(runtime), self.settings.device):
            raise UsageError(f"--runtime {name} cannot serve a search here: {reason}. Use --runtime torch.")
        return runtime

    @cached_property
    def runtime_choice(self) -> RuntimeChoice | None:
        """What `--runtime auto` measured and took, from `runtime.json` in a resumed run; None if the runtime was given."""
        if self.settings.runtime != AUTO:
            return None
        known = {name: unusable(kind, self.settings.device) for name, kind in RUNTIMES.items()}
        shape = (self.batch_size, self.seq_len, torch.get_num_threads(), known, self.space.schemes)
        made_from = self.stage_fingerprint("runtime", shape)
        path = self.folder / CHOICE
        if (value := self.resume_from(path, made_from)) is not None:
            return RuntimeChoice.from_dict(value)
        with self.progress.bar("runtimes", "runtime") as update:
            choice = choose_runtime(
                self.model, self.task, self.inventory, self.space.schemes, device=self.settings.device,
                batch_size=self.batch_size, seq_len=self.seq_len, progress=update,
            )  # fmt: skip
        choice = replace(choice, fingerprint=made_from)
        write_json(path, choice.to_dict())
        return choice

    @cached_property
    def base_dtypes(self) -> tuple[str, ...]:
        """Those of the space that the runtime computes in, and float32, which everything is compared with."""
        usable = (base for base in self.space.base_dtypes if self.runtime.cannot_compute(base) is None)
        return tuple(dict.fromkeys(("float32", *usable)))

    @cached_property
    def space(self) -> Space:
        return load_space(self.settings.space)

    @cached_property
    def allowed(self) -> dict[str, tuple[str, ...]]:
        return allowed(self.space, self.inventory, self.runtime)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Layers that share a choice; says which projections are tied or free, and why."""
        layers, asked = self.inventory.layers, self.settings.fuse
        fuse = self.runtime.fuses(self.settings.device) if asked is None else asked
        if known := siblings(layers):
            what = ", ".join(f"{count} × {names}" for names, count in known.items())
            if asked is not None:
                why = f"because of --{'' if fuse else 'no-'}fuse"
            elif fuse:
                why = f"because the {self.runtime.name} runtime runs each as one product (--no-fuse leaves them free)"
            else:
                why = f"because the {self.runtime.name} runtime serves them mixed, too (--fuse ties them, as vLLM needs it)"
            self.progress.say(f"{'Tied' if fuse else 'Free':7} {what}: {why}")
        return groups(layers, fuse=fuse)

    @cached_property
    def assembler(self) -> Assembler:
        return Assembler(self.model, self.inventory, self.runtime)

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size or self.task.batch_size

    @property
    def seq_len(self) -> int | None:
        return self.settings.seq_len or self.task.seq_len

    @cached_property
    def model_fingerprint(self) -> str:
        return fingerprint_model(self.model)

    @cached_property
    def architecture_fingerprint(self) -> str:
        return fingerprint_architecture(self.inventory.layers)

    def stage_fingerprint(self, *what: object) -> str:
        """What a stage's file was made from: model, task data, and the settings named."""
        return fingerprint([self.model_fingerprint, self.task.describe(), list(what)])

    def resume_from(self, path: Path, made_from: str) -> dict[str, Any] | None:
        """The content of a stage's file; None if it is not there.

        Raises:
            StaleError: it was made from another model, other data or other settings.
        """
        if not path.is_file():
            return None
        value = read_json(path)
        if value.get("fingerprint") != made_from:
            raise StaleError(
                f"{path} was made from another model, other data or other settings than these. "
                "Choose another --out folder, or delete the file to have it made again."
            )
        self.progress.say(f"  {path.name}: taken from the run folder")
        return value


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "optuna", "compressed-tensors", "scipy", "safetensors")
    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
