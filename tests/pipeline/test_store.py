"""The run on disk: stages written once, tensors once, and where a resume starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pyrobnn as pb
from pyrobnn.errors import CheckpointError
from pyrobnn.io.checkpoint import load_checkpoint, save_checkpoint
from pyrobnn.pipeline.state import State, VariationalState, settled
from pyrobnn.pipeline.store import RunStore
from pyrobnn.summary.types import ChannelSummary, Posterior

IDENTITY: dict[str, Any] = {"seed": 1, "net": [["weight", [2, 3]]], "config": {"target": 0.5, "method": "m"}}
CPU = torch.device("cpu")


def template(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))


def start(net: nn.Module) -> State:
    return State(dense=net, net=net, plan=pb.PruningPlan({"0": [0, 1, 2, 3]}, {"0": 4}))


def store(folder: Path | None, **options: Any) -> RunStore:
    return RunStore(folder, options.pop("identity", IDENTITY), template(), CPU, **options)


def posterior() -> Posterior:
    channels = {"0": ChannelSummary("0", torch.rand(4), torch.rand(4), "snr", torch.ones(4, dtype=torch.bool))}
    return Posterior({}, channels, {"0.noise": torch.rand(5, 4)}, history=[{"0": torch.rand(4)}])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "stages").iterdir())


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    net = template()
    small = pb.compact(net, pb.PruningPlan({"0": [0, 2]}, {"0": 4}), torch.randn(2, 1, 4, 4))
    state = replace(
        start(net),
        net=settled(small, net),
        plan=pb.PruningPlan({"0": [0, 2]}, {"0": 4}),
        base=0.5,
        variational=VariationalState(
            {"loc": torch.rand(3)}, {"0.weight": torch.rand(2)}, {"unit": 0.1}, {"C": {"n": 2}}
        ),
        latest=posterior(),
        records=({"0": torch.rand(4)},),
        posterior=posterior(),
        rounds=({"round": 1, "widths": {"0": 2}},),
        spent={"dense": 1, "infer": 0.5, "tune": 0},
        extras={"mask": torch.rand(2) > 0.5, "word": "x", "numbers": [1, 2.5, None]},
        accepted="dense",
        stopped=True,
    )
    store(tmp_path).write(3, "cut 1", state)
    back = store(tmp_path, resume=True).state("cut 1")
    for mine, other in ((state.net, back.net), (state.dense, back.dense)):
        assert list(mine.state_dict()) == list(other.state_dict())
        assert all(
            torch.equal(a, b) for a, b in zip(mine.state_dict().values(), other.state_dict().values(), strict=True)
        )
    assert back.net[0].out_channels == 2
    for name in ("base", "rounds", "spent", "accepted", "held", "stopped", "recovered", "seconds"):
        assert getattr(back, name) == getattr(state, name), name
    assert back.plan == state.plan and back.extras["numbers"] == [1, 2.5, None]
    assert torch.equal(back.extras["mask"], state.extras["mask"])
    assert back.variational is not None and torch.equal(back.variational.guide["loc"], state.variational.guide["loc"])
    assert back.variational.callbacks == {"C": {"n": 2}}
    assert torch.equal(back.posterior.draws["0.noise"], state.posterior.draws["0.noise"])
    torch.load(next((tmp_path / "stages").iterdir()), weights_only=True)


def test_a_tensor_is_written_once_and_going_back_costs_nothing(tmp_path: Path) -> None:
    net = template()
    big = {"loc": torch.rand(50_000)}
    kept = store(tmp_path)
    first = replace(start(net), variational=VariationalState(big, {}), accepted="infer 1")
    kept.write(0, "infer 1", first)
    second = replace(first, variational=VariationalState({"loc": torch.rand(50_000)}, {}))
    kept.write(1, "infer 2", second)
    kept.write(2, "accept 2", replace(kept.state("infer 1"), stopped=True))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "stages").iterdir()}
    assert files(tmp_path) == ["000-infer-1.pt", "002-accept-2.pt"]  # nothing points to the second any more
    assert sizes["000-infer-1.pt"] > 200_000 > 20_000 > sizes["002-accept-2.pt"]
    back = store(tmp_path, resume=True)
    assert back.newest == (2, "accept 2") and torch.equal(back.state("accept 2").variational.guide["loc"], big["loc"])


def test_earlier_stages_stay_as_long_as_somebody_may_go_back_to_them(tmp_path: Path) -> None:
    net = template()
    kept = store(tmp_path)
    kept.write(0, "dense", replace(start(net), accepted="dense", held="dense"))
    kept.write(1, "infer 1", replace(start(template()), accepted="dense", held="dense"))
    kept = store(tmp_path, resume=True)  # what files point to is known after a resume as well
    later = kept.state("infer 1")
    kept.write(2, "accept 1", replace(later, accepted="infer 1", held="dense"))
    assert files(tmp_path) == ["000-dense.pt", "001-infer-1.pt", "002-accept-1.pt"]
    kept.write(
        3, "tune", replace(start(template(seed=1)), accepted=None, held=None)
    )  # nothing in it was written before
    assert files(tmp_path) == ["003-tune.pt"]


def test_an_interrupted_stage_goes_on_from_its_fit(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.write(0, "dense", start(template()))
    kept.save_fit("infer 1", {"epoch": 3})
    again = store(tmp_path, resume=True)
    assert again.newest == (0, "dense") and again.fit_state("infer 1") == {"epoch": 3}
    assert again.fit_state("infer 2") is None
    again.write(1, "infer 1", start(template()))
    assert store(tmp_path, resume=True).fit_state("infer 1") is None


def test_a_process_that_ended_between_stage_and_checkpoint(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.write(0, "dense", start(template()))
    kept.save_fit("infer 1", {"epoch": 3})
    before = (tmp_path / "checkpoint.pt").read_bytes()
    kept.write(1, "infer 1", start(template()))
    (tmp_path / "checkpoint.pt").write_bytes(before)
    assert store(tmp_path, resume=True).newest == (1, "infer 1")


def test_values_are_decided_once(tmp_path: Path) -> None:
    assert store(tmp_path).once("epochs", lambda: [1, 2]) == [1, 2]
    assert store(tmp_path, resume=True).once("epochs", lambda: [3]) == [1, 2]
    assert store(None).once("epochs", lambda: [3]) == [3]


def test_without_resume_or_file_it_starts_afresh(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.write(0, "dense", start(template()))
    assert store(tmp_path).newest is None and store(tmp_path / "none", resume=True).newest is None
    memory = store(None)
    state = start(template())
    memory.write(0, "dense", state)
    assert memory.state("dense") is state


@pytest.mark.parametrize("change", [{"seed": 2}, {"net": [["weight", [2, 4]]]}, {"config": {"target": 0.4}}])
def test_another_run_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    store(tmp_path).write(0, "dense", start(template()))
    with pytest.raises(CheckpointError, match="target=0.5" if "config" in change else next(iter(change))):
        store(tmp_path, identity={**IDENTITY, **change}, resume=True)


def test_a_checkpoint_of_an_earlier_version_gets_one_line(tmp_path: Path) -> None:
    save_checkpoint({"identity": {}, "carry": {}, "done": [], "fit": None, "seconds": 1.0}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="written by an earlier version"):
        store(tmp_path, resume=True)


def test_lost_and_foreign_stages_are_named(tmp_path: Path) -> None:
    kept = store(tmp_path)
    kept.write(0, "dense", start(template()))
    path = tmp_path / "stages" / "000-dense.pt"
    content = load_checkpoint(path)
    path.unlink()
    with pytest.raises(CheckpointError, match="has lost its stages"):
        store(tmp_path, resume=True)
    save_checkpoint({**content, "format": 1}, path)
    with pytest.raises(CheckpointError, match="not the stage of a run"):
        store(tmp_path, resume=True).state("dense")


def test_an_interrupted_write_leaves_the_old_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = store(tmp_path)
    kept.write(0, "dense", start(template()))

    def half(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("torch.save", half)
    with pytest.raises(OSError, match="disk full"):
        kept.write(1, "infer 1", start(template()))
    monkeypatch.undo()
    assert store(tmp_path, resume=True).newest == (0, "dense")


def test_equal_tensors_are_written_once_and_views_without_the_rest(tmp_path: Path) -> None:
    whole = torch.arange(100_000.0)
    kept = store(tmp_path)
    kept.write(0, "infer 1", start(template()).with_extras(part=whole[:10]))
    kept.write(1, "cut 1", start(template()).with_extras(part=whole[:10].clone(), other=whole[:10].double()))
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "stages").iterdir()}
    assert max(sizes.values()) < 20_000
    back = store(tmp_path, resume=True).state("cut 1").extras
    assert torch.equal(back["part"], whole[:10]) and back["part"].dtype == torch.float32
    assert torch.equal(back["other"], whole[:10].double()) and back["other"].dtype == torch.float64
