"""The processes of a run that works on one data set together; in one process all of it is the identity.

Every process runs the same code on the same network. What they share is said here: sums over examples, decisions of
the first process, files that it alone writes, and how the end of one becomes the end of all.

Sharing is switched on by :func:`together` alone, so that nothing that a script calls in one of its processes waits for
others that do not come.
"""

from __future__ import annotations

import inspect
import itertools
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from pyrobnn.errors import ProcessError, PyrobnnError
from pyrobnn.io import launch
from pyrobnn.io.ending import Ending, of_another

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
# A process that has died is noticed at once; this is for one that hangs, and longer than the first may take alone.
TIMEOUT = timedelta(hours=2)
# A kernel of one channel lies the same in both layouts; where the two differ in name gradients are copied.
_HARMLESS = ".*Grad strides do not match bucket view strides"


@dataclass(frozen=True)
class Processes:
    """Those that share a run, seen from one of them.

    Attributes:
        rank: number of this one, from 0.
        size: how many there are.
        host: their group for what lies in the memory of the host; None alone.
    """

    rank: int = 0
    size: int = 1
    host: Any = None
    _wrapped: WeakSet[Any] = field(default_factory=WeakSet, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """This one writes files and speaks to the user."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """There is no other one."""
        return self.size == 1

    def sum(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all processes, in place."""
        if self.alone:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dist.all_reduce(tensor, group=self.host if tensor.device.type == "cpu" else None)

    def of_the_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process, in place."""
        if self.alone:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            for tensor in tensors:
                sent = tensor.detach().contiguous()
                dist.broadcast(sent, 0, group=self.host if sent.device.type == "cpu" else None)
                tensor.copy_(sent)

    def agreed(self, value: T) -> T:
        """The value that the first process has."""
        if self.alone:
            return value
        import torch
        import torch.distributed as dist

        box = [value if self.first else None]
        dist.broadcast_object_list(box, 0, group=self.host, device=torch.device("cpu"))
        found: Any = box[0]
        return found

    def each(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        if self.alone:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.host)
        return found

    def first_does(self, make: Callable[[], T]) -> T:
        """Call a function in the first process alone, and give all what it returned, or raise what it raised."""
        if self.alone:
            return make()
        value: Any = None
        error: Exception | None = None
        if self.first:
            try:
                with _as(Processes()):
                    value = make()
            except Exception as raised:
                error = raised
        shown = error if isinstance(error, PyrobnnError | OSError) or error is None else ProcessError(str(error))
        value, told = self.agreed((value, shown))
        if error is not None:  # with the place where it was raised
            raise error
        if told is not None:
            raise told
        result: T = value
        return result

    def first_leads(self, make: Callable[[], T]) -> T:
        """Call a function in the first process, then in the others; what it raises in the first is raised in all.

        For what the first leaves on the disk for the others, and for errors that would be the same in all.
        """
        if self.alone:
            return make()
        made: list[T] = []
        self.first_does(lambda: made.append(make()))
        return made[0] if self.first else make()

    def first_error(self, error: PyrobnnError, better: Callable[[PyrobnnError], bool]) -> PyrobnnError:
        """Of the errors that all processes have at once, the first that says more than the others."""
        found = self.each(error)
        return next((other for other in found if better(other)), found[0])

    def shared(self, module: nn.Module) -> nn.Module:
        """The module in torch's `DistributedDataParallel`: gradients are averaged, tensors start as the first's are."""
        if self.alone:
            return module
        from torch.nn.parallel import DistributedDataParallel

        # Statistics of normalisation are the first process's when they are read (see Loop), and held tensors never
        # change, so nothing is broadcast step by step; the option was renamed in torch 2.14.
        known = inspect.signature(DistributedDataParallel).parameters
        options: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
        }
        # Which parameters a step uses can change: means alone at first, say.
        wrapped = DistributedDataParallel(module, find_unused_parameters=True, **options)
        self._wrapped.add(wrapped)
        return wrapped

    def let_go(self, error: BaseException | None = None) -> None:
        """Drop what holds the group's connections: modules of :meth:`shared`, and the frames of an error.

        Gloo closes them when nothing refers to the group any more, and only then do the others see that this one is gone.
        """
        for wrapped in self._wrapped:
            wrapped.reducer = wrapped.logger = wrapped.process_group = wrapped.device_mesh = None
        self._wrapped.clear()
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__


def part_of(count: int, rank: int, size: int) -> tuple[int, int]:
    """Start and stop of the examples of a batch that a process takes.

    A batch with fewer than two for each process is taken by all: one example alone has no batch statistics.

    >>> part_of(5, 0, 2), part_of(5, 1, 2), part_of(3, 1, 2)
    ((0, 2), (2, 5), (0, 3))
    """
    if count < 2 * size:
        return 0, count
    return count * rank // size, count * (rank + 1) // size


@cache
def _launchers_store(*where: str) -> Any:
    """The store of keys at the address that the launcher says; kept, as the first process may be the one that serves it.

    It would go with the first group otherwise, while another process that has left that group already is at the next one.
    """
    import torch.distributed as dist

    return next(dist.rendezvous("env://", timeout=TIMEOUT))


def here_first() -> bool:
    """Whether this process writes what all processes of a script make, where none waits for another."""
    import torch.distributed as dist

    return dist.get_rank() == 0 if dist.is_available() and dist.is_initialized() else launch.rank() == 0


_joined = itertools.count()  # groups that were begun; the same number in all processes
_current: ContextVar[Processes | None] = ContextVar("processes", default=None)


def current() -> Processes:
    """The processes that share what is going on; one alone outside of :func:`together`."""
    return _current.get() or Processes()


@contextmanager
def _as(processes: Processes) -> Iterator[None]:
    token = _current.set(processes)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def together() -> Iterator[Processes]:
    """Share what follows between the processes of a launcher (`torchrun`), or those of a group that is there.

    Every one of them must come here. Without other processes nothing happens.

    Raises:
        ProcessError: another one ended. One process alone is to tell the user of an error: `launch.says`.
    """
    running = _current.get()
    if running is not None:  # within a run, or in what the first does alone
        yield running
        return
    import torch.distributed as dist

    begun = dist.is_available() and dist.is_initialized()
    if not begun and launch.world_size() == 1:
        yield Processes()
        return
    store = None if begun else _begin()
    host = dist.new_group(backend="gloo", timeout=TIMEOUT) if begun else None
    processes = Processes(dist.get_rank(), dist.get_world_size(), host)
    lost: ProcessError | None = None
    with nullcontext() if begun else Ending() as ending:
        try:
            with _as(processes), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=_HARMLESS)
                if not processes.first:
                    warnings.simplefilter("ignore")
                yield processes
        except BaseException as error:
            lost = of_another(error)
            _tell(lost or error, store, processes)
            if ending is not None:
                ending.after(lost or error)
                processes.let_go(error)
            if lost is not None:
                raise lost from error
            raise
        finally:
            lost = None  # its traceback holds this frame: a circle would keep the connections until it is collected
            if not begun:
                processes.let_go()
                # The group's threads still let go of what they sent last, for which they need the interpreter's lock.
                # torch 2.6 holds it while it waits for them to end: for ever.
                time.sleep(0.1)
                dist.destroy_process_group()


def _begin() -> Any:
    """Join the others at the address that the launcher says; returns the store of keys that all see."""
    import torch
    import torch.distributed as dist

    # DDP imports it too. Its functions have the group that there is then as a default, and hold its connections for good.
    import torch.distributed.nn.functional

    where = {name: os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")}
    if missing := [name for name, value in where.items() if not value]:
        raise ProcessError(
            f"WORLD_SIZE says that there are several processes, and {missing[0]} is not set: start them with torchrun"
        )
    device = torch.cuda.is_available()
    if device:
        torch.cuda.set_device(launch.local_rank() % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if device else "gloo"
    try:
        store, rank, size = _launchers_store(*where.values())
        # The store outlives a group, and torchrun's outlives processes that it starts again: the next group must not read
        # the addresses of the last.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        shared = dist.PrefixStore(f"pyrobnn/{attempt}/{next(_joined)}", store)
        dist.init_process_group(backend, store=shared, rank=rank, world_size=size, timeout=TIMEOUT)
    except RuntimeError as error:
        lost = of_another(error)
        if lost is None:
            raise
        lost.told_by_another = False  # type: ignore[attr-defined]
        raise lost from error
    return shared


def _tell(error: BaseException, store: Any, processes: Processes) -> None:
    """Note in the error whether another process tells the user: the first that comes does, without a store rank 0."""
    told = not processes.first
    if store is not None:
        with suppress(RuntimeError):  # the process that kept the store is gone
            told = store.add("told", 1) > 1
    error.told_by_another = told  # type: ignore[attr-defined]
