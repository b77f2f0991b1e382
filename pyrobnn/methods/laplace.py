"""`laplace`: the Laplace posterior of a trained network's gates, priced; ours.

Every channel has a gate whose posterior is Gaussian with the Fisher information of the gate as its precision
(:func:`~pyrobnn.criteria.laplace.laplace_gates`). There is nothing to fit: the network is judged as it is, again after
each cut, and all epochs tune the result. Under a budget channels are ranked by what they lose together
(:mod:`pyrobnn.criteria.joint`), with labels of softened outputs (T = 4); without a target the evidence of the gates
themselves (T = 1) decides.
"""

from __future__ import annotations

from pyrobnn.criteria.laplace import LAPLACE
from pyrobnn.guides.function import NoLatents
from pyrobnn.pipeline.choices import by_rule
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.method import Method
from pyrobnn.pipeline.pipelines import common, rounds
from pyrobnn.pipeline.recipe import recipes
from pyrobnn.pipeline.stages import Stage


def while_evidence_rises(context: Context) -> list[Stage]:
    """With a target the common pipeline; without one, rounds until no cut would raise the evidence."""
    if context.config.target:
        return common(context)
    return rounds(context, lambda context, state, number: by_rule(context, state), judged=False, until_nothing=True)


METHOD = Method(
    name="laplace",
    title="Laplace posterior of a gate on every channel, judged again after each cut; nothing is fitted",
    source="ours; Fisher information of gates, prior scale by marginal likelihood (MacKay 1992)",
    cut_where="fewest softened nats per cost, lost together (without a target: while the evidence rises)",
    prior=lambda: None,
    guide=lambda model: NoLatents(),
    rule="evidence",
    # Under --max-drop a cut must be seen to recover: the plain network trains between cuts, as controls do.
    recipes=recipes(
        rounds=5,
        infer_share=0.0,
        infer_distillation=0.5,
        deep={"infer.optimizer": "sgd", "infer.lr": 0.01, "infer.weight_decay": 5e-4},
    ),
    score=LAPLACE,
    pipeline=while_evidence_rises,
)
