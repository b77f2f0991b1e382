"""`RunStore`: a run on disk, with each finished stage written once and the running fit beside it.

`stages/<number>-<name>.pt` holds what a stage left. A tensor that an earlier stage has already written is not written
again: the file says where it is. So going back to an earlier stage costs nothing, and a file that nothing points to any
more is deleted. `checkpoint.pt` holds the fit under way, and what must be equal for a resume.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrobnn.errors import CheckpointError
from pyrobnn.io.checkpoint import load_checkpoint, save_checkpoint
from pyrobnn.io.processes import current
from pyrobnn.pipeline.identity import difference
from pyrobnn.pipeline.state import State, from_data, to_data

CHECKPOINT = "checkpoint.pt"
STAGES = "stages"
FORMAT = 2
WHERE = "tensor in stage"  # key of a dict that stands for a tensor: [number of the stage, index]


class RunStore:
    """What a run has done so far, in memory and, with a folder, on disk.

    Where several processes share a run, the first one alone reads and writes files, and the others get what it reads.

    Args:
        folder: the run directory; None keeps everything in memory.
        identity: what must be equal for a resume, see :mod:`pyrobnn.pipeline.identity`.
        template: the dense network, to rebuild networks from.
        device: for networks that are read back.
        resume: go on from the newest whole stage, if there is a checkpoint.

    Attributes:
        newest: `(number, name)` of the last finished stage; None before the first.

    Raises:
        CheckpointError: a damaged file, or one of another run or of an earlier version.
    """

    def __init__(
        self,
        folder: Path | None,
        identity: Mapping[str, Any],
        template: nn.Module,
        device: torch.device,
        *,
        resume: bool = False,
    ) -> None:
        self.processes = current()
        self.folder = folder if self.processes.first else None
        self.identity, self.template, self.device = dict(identity), template, device
        self.newest: tuple[int, str] | None = None
        self._states: dict[str, State] = {}  # that a later stage may want: the newest, and those to go back to
        self._needs: dict[int, list[int]] = {}  # per stage file the files that it points to
        self._written: dict[str, tuple[int, int]] = {}  # by content: its stage and index
        self._values: dict[str, Any] = {}
        self._fit: tuple[str, dict[str, Any]] | None = None
        self._start, self._before = time.perf_counter(), 0.0
        if resume and folder is not None:
            found = self.processes.first_does(self._found)
            if found is not None:
                self._values, self._before, self._fit, self.newest = found

    # What is asked of it while a run goes on

    @property
    def seconds(self) -> float:
        """Wall-clock time up to now, with that of the interrupted parts up to their last checkpoint."""
        return self._before + time.perf_counter() - self._start

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """A plain value that is decided when the run begins and stays so when it is resumed."""
        if name not in self._values:
            self._values[name] = self.processes.agreed(make())
            self._save()
        return self._values[name]

    def write(self, number: int, name: str, state: State) -> None:
        """A stage is finished: store its state, and delete what nothing points to any more."""
        self._states[name] = state
        self.processes.first_does(lambda: self._write(number, name, state))
        self.newest, self._fit = (number, name), None
        wanted = {name, state.accepted, state.held, state.best, *state.trail}
        self._states = {key: kept for key, kept in self._states.items() if key in wanted}
        self.processes.first_does(self._save)
        self._clean({self._number(key) for key in wanted if key is not None})

    def state(self, name: str) -> State:
        """The state that a stage left: the newest, or one that the newest points to."""
        if name not in self._states:
            data = self.processes.first_does(lambda: self._read(self._number(name)))
            self._states[name] = from_data(data, self.template, self.device)
        return self._states[name]

    def save_fit(self, stage: str, state: dict[str, Any]) -> None:
        """Store the fit of an unfinished stage; what `fit(save=…)` calls after each epoch."""
        self._fit = (stage, state)
        self._save()

    def fit_state(self, stage: str) -> dict[str, Any] | None:
        """The fit that was under way when the run stopped, if it was in this stage."""
        return self._fit[1] if self._fit is not None and self._fit[0] == stage else None

    # Files

    def _path(self, number: int, name: str) -> Path:
        assert self.folder is not None
        return self.folder / STAGES / f"{number:03d}-{name.replace(' ', '-')}.pt"

    def _files(self) -> dict[int, Path]:
        if self.folder is None:
            return {}
        return {int(path.name.partition("-")[0]): path for path in (self.folder / STAGES).glob("[0-9]*-*.pt")}

    def _number(self, name: str) -> int:
        if self.newest is not None and self.newest[1] == name:
            return self.newest[0]
        end = f"{name.replace(' ', '-')}.pt"
        return next((number for number, path in self._files().items() if path.name.partition("-")[2] == end), -1)

    def _write(self, number: int, name: str, state: State) -> None:
        if self.folder is None:
            return
        new: list[Tensor] = []
        needs: set[int] = set()

        def pack(value: Any) -> Any:
            if isinstance(value, Tensor):
                value = value.detach().cpu()
                key = _content(value)
                if key not in self._written:
                    self._written[key] = (number, len(new))
                    new.append(_alone(value))
                needs.add(self._written[key][0])
                return {WHERE: list(self._written[key])}
            if isinstance(value, Mapping):
                return {key: pack(part) for key, part in value.items()}
            if isinstance(value, list | tuple):
                return [pack(part) for part in value]
            return value

        packed = pack(to_data(state))
        self._needs[number] = sorted(needs - {number})
        content = {"format": FORMAT, "name": name, "state": packed, "tensors": new, "needs": self._needs[number]}
        save_checkpoint(content, self._path(number, name))

    def _read(self, number: int) -> dict[str, Any]:
        files = self._files()
        loaded: dict[int, dict[str, Any]] = {}

        def content(of: int) -> dict[str, Any]:
            if of not in loaded:
                if of not in files:
                    raise CheckpointError(
                        f"{self.folder} lacks a file of stage {of} in {STAGES}: start afresh in another --out"
                    )
                loaded[of] = load_checkpoint(files[of])
                if loaded[of].get("format") != FORMAT:
                    raise CheckpointError(f"{files[of]} is not the stage of a run: start afresh in another --out")
            return loaded[of]

        def unpack(value: Any) -> Any:
            if isinstance(value, dict):
                if WHERE in value:
                    of, index = value[WHERE]
                    tensor = content(of)["tensors"][index]
                    self._written[_content(tensor)] = (of, index)
                    return tensor
                return {key: unpack(part) for key, part in value.items()}
            return [unpack(part) for part in value] if isinstance(value, list) else value

        self._needs[number] = list(content(number)["needs"])
        found: dict[str, Any] = unpack(content(number)["state"])
        return found

    def _clean(self, wanted: set[int]) -> None:
        files = self._files()
        for number in wanted & files.keys() - self._needs.keys():  # an earlier stage, after a resume
            self._needs[number] = list(load_checkpoint(files[number])["needs"])
        keep = wanted | {need for number in wanted for need in self._needs.get(number, [])}
        for number, path in files.items():
            if number not in keep:
                path.unlink(missing_ok=True)
        self._written = {key: known for key, known in self._written.items() if known[0] in keep}

    def _save(self) -> None:
        if self.folder is not None:
            content = {
                "format": FORMAT,
                "identity": self.identity,
                "values": self._values,
                "newest": None if self.newest is None else list(self.newest),
                "running": None if self._fit is None else self._fit[0],
                "fit": None if self._fit is None else self._fit[1],
                "seconds": self.seconds,
            }
            save_checkpoint(content, self.folder / CHECKPOINT)

    def _found(self) -> tuple[dict[str, Any], float, tuple[str, dict[str, Any]] | None, tuple[int, str] | None] | None:
        """Values, seconds, running fit and newest stage of an interrupted run in the folder; None without one."""
        assert self.folder is not None
        path = self.folder / CHECKPOINT
        if not path.exists():
            return None
        content = load_checkpoint(path)
        if "carry" in content:
            raise CheckpointError(
                f"{path} was written by an earlier version, whose interrupted runs cannot be resumed: start afresh in "
                "another --out (what a finished run left is read as before)"
            )
        if content.get("format") != FORMAT or not {"identity", "values", "newest", "fit", "seconds"} <= content.keys():
            raise CheckpointError(f"{path} is not the checkpoint of a run: delete it and start afresh")
        found = difference(content["identity"], self.identity)
        if found is not None:
            name, theirs, ours = found
            raise CheckpointError(
                f"{path} belongs to a run with {name}={theirs!r}, this one has {ours!r}: "
                "use the same settings, or another --out"
            )
        fit = None if content["fit"] is None else (content["running"], content["fit"])
        # A process that ended between the two files has a newer stage than its checkpoint says.
        numbers, newest = self._files(), None
        if numbers:
            newest = (max(numbers), load_checkpoint(numbers[max(numbers)])["name"])
        elif content["newest"] is not None:
            raise CheckpointError(f"{self.folder} has lost its {STAGES}: start afresh in another --out")
        return dict(content["values"]), float(content["seconds"]), fit, newest


def _content(tensor: Tensor) -> str:
    """A key that is equal for equal tensors."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _alone(tensor: Tensor) -> Tensor:
    """The tensor without the rest of a larger one that it may be a part of, which `torch.save` would write too."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
