"""Rounds that are judged: did inference bring the network back, and where to go back to if not."""

from __future__ import annotations

import math
from functools import partial

from pyrobnn.pipeline.journal import Carry
from pyrobnn.pipeline.run import Run

SLACK = 0.4  # what tuning with plain weights still adds to the posterior mean, in points


def floor(run: Run, slack: float = 0.0) -> float:
    """The validation accuracy that `--max-drop` asks for (no drop without it), less `slack` points."""
    drop = (run.request.max_drop or 0.0) + slack
    return float(run.carry["base"]) - drop / 100


def resolution(run: Run) -> float:
    """Standard error of the validation accuracy in points: what one cannot see on so few images."""
    base = min(float(run.carry["base"]), 1 - 0.5 / len(run.data.valid))
    return 100 * math.sqrt(base * (1 - base) / len(run.data.valid))


def recovered(run: Run, number: int) -> bool:
    """Whether inference brought the network back to where tuning can be expected within the allowed drop."""
    return number == 0 or bool(run.carry["recovered"] >= floor(run, SLACK + resolution(run)))


def judge(run: Run, number: int, carry: Carry) -> Carry:
    """Add the round's verdict to those before, and whether it held the drop with nothing left to tuning."""
    held = number == 0 or bool(run.carry["recovered"] >= floor(run))
    return {
        "judged": [*carry.get("judged", []), recovered(run, number)],
        "held": [*carry.get("held", []), held],
    }


def begin(run: Run) -> None:
    """The dense network, which is the first one to go back to."""
    run.start()
    run.accept("accept dense")
    run.accept("hold dense", "held_state")


def survives(run: Run, number: int) -> bool:
    """Judge a round after its inference: remember the network, or go back to the one before (and stop)."""
    # By round, since a resumed run has the state of a later round here.
    run.journal.step(f"judge {number + 1}", partial(judge, run, number))
    if not run.carry["judged"][number]:
        run.restore(f"back from {number + 1}")
        return False
    run.accept(f"accept {number + 1}")
    if run.carry["held"][number]:
        run.accept(f"hold {number + 1}", "held_state")
    return True


def _larger(run: Run) -> str | None:
    """Where a larger network than the current one lies: the last that held the drop before any tuning.

    If none did, the last that came near. A round that failed is taken back before the tuning, so what was
    accepted last may be the network that has just been tuned.
    """
    for slot in ("held_state", "accepted"):
        plan = run.carry[slot].get("plan")
        if plan is not None and plan != run.carry["plan"]:
            return slot
    return None


def finish(run: Run, tune: int, retune: int) -> None:
    """Tune; where that misses the accuracy, spend `retune` epochs on a larger network, or on this one if none is left."""
    run.tune("tune", tune)
    if retune and run.carry["tuned"] < floor(run):
        slot = _larger(run)
        if slot is None:
            run.say("tuning missed the accuracy, and no larger network but the dense one is left: tuning goes on")
        else:
            run.say("tuning missed the accuracy: back to a larger network, which inference had brought back")
            run.restore("back from tune", slot)
        run.tune("retune", retune)
    if run.carry["tuned"] < floor(run):
        short = 100 * (floor(run) - run.carry["tuned"])
        run.say(f"the result is {short:.2f} points short of what was asked on validation data: give it more --epochs")
