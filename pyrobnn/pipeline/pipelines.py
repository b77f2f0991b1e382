"""The pipelines: lists of stages from a dense to a compact network."""

from __future__ import annotations

from pyrobnn.channels import PruningPlan
from pyrobnn.pipeline.choices import by_rule, choose
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.search import search
from pyrobnn.pipeline.stages import Choose, Stage, accept, cut, infer, retune, train_dense, train_from_scratch, tune


def common(context: Context) -> list[Stage]:
    """Dense network → (posterior → cut) in rounds → tuning.

    With a budget every round cuts to a geometric step of it. With `--max-drop` each round cuts as deep as validation
    accuracy allows, and the run goes back one round when it does not recover. With neither, the method's own rule
    decides once per round.
    """
    return rounds(context, choose, judged=context.config.within_drop)


def iterative(context: Context) -> list[Stage]:
    """With a target the common pipeline; without one, the loop of the papers, which stops by itself.

    Every round trains, checks that validation accuracy is still what can be expected to come back (the
    dense network's, less what tuning adds and what so few images can show), and cuts the same small share
    of every layer. The first round that fails is taken back. Two thirds of the tuning epochs go to the
    result; the rest is for the network before it, should tuning not bring the accuracy back.
    """
    if context.config.target:
        return common(context)
    last = context.epochs.tune // 3
    return rounds(context, lambda context, state, number: by_rule(context, state), judged=True, kept_back=last)


def rounds(
    context: Context, choice: Choose, *, judged: bool, kept_back: int = 0, until_nothing: bool = False
) -> list[Stage]:
    """One inference and one cut per round, then tuning.

    Args:
        context: of the run.
        choice: which channels go.
        judged: go back when a round loses the accuracy, and tune again when tuning misses it.
        kept_back: tuning epochs that are kept for that second tuning.
        until_nothing: a round that cuts nothing ends them.
    """
    stages = [train_dense()]
    for number in range(len(context.epochs.infer)):
        stages += [infer(number), *([accept(number)] if judged else [])]
        stages.append(cut(number, choice, until_nothing=until_nothing))
    return [*stages, *tuning(context, judged=judged, kept_back=kept_back)]


def tuning(context: Context, *, judged: bool, kept_back: int = 0) -> list[Stage]:
    """The end of every pipeline; arguments as for :func:`rounds`."""
    epochs = context.epochs
    if not judged:
        return [tune(epochs.tune)]
    if context.config.within_drop:
        return [tune(epochs.tune), *search()]
    return [tune(epochs.tune - kept_back), retune(epochs.retune + kept_back)]


def from_scratch(plan: PruningPlan) -> list[Stage]:
    """A control: the architecture of a plan with fresh weights."""
    return [train_from_scratch(plan)]
