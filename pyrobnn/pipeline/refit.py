"""Refits the posterior of the compact network after the pipeline."""

from __future__ import annotations

from dataclasses import replace

from pyrobnn.errors import CheckpointError
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.out_of_distribution import OutOfDistributionDistillation
from pyrobnn.inference.precision import channels_last
from pyrobnn.pipeline.context import Context
from pyrobnn.pipeline.stages import Stage
from pyrobnn.pipeline.state import State
from pyrobnn.posterior.bayesian_net import BayesianNet, settings
from pyrobnn.posterior.draws import remaining_scales

BAYESIAN_SEED, WIDTH_SEED, SCALES_SEED = "bayesian", "width", "survive"


def check_refit(state: State, epochs: int) -> None:
    """A posterior that is there already has to be of so many epochs.

    Raises:
        CheckpointError: it is of another number.
    """
    had = state.spent.get("bayesian")
    if had is not None and had != epochs:
        raise CheckpointError(
            f"this run has a posterior of {had} epochs, not {epochs}: leave --bayesian-epochs out, or choose another --out"
        )


def refit(epochs: int) -> Stage:
    """Fit a Gaussian posterior around the tuned compact network.

    It starts as wide as the posterior of the kept coordinates was, or narrower by a factor, if the ELBO of weights
    that are independent wants that. Pipelines that fold their noise away
    round by round (`rbp`) and controls have none at the end; there it starts at a tenth of the weights.
    Out-of-distribution distillation from the dense network keeps it uncertain where there are no data. The compact
    network itself is not changed.
    Weights that the method zeroed one by one get a posterior like the others.
    """

    def run(context: Context, state: State) -> State:
        net, scales = state.net, None
        if state.variational is not None and state.variational.guide is not None:
            model, guide = context.model_of(state)
            scales = remaining_scales(model.cpu(), guide.cpu(), seed=context.seed(SCALES_SEED))
        size = len(context.data.train)
        fitted = BayesianNet.around(net.cpu(), data_size=size, scales=scales, likelihood=context.likelihood)
        config = context.fit_config(FitConfig(**settings(net)), BAYESIAN_SEED, epochs, validate=False)
        fitted.choose_width(context.data.train, kl_weight=settings(net)["kl_schedule"], seed=context.seed(WIDTH_SEED))
        # A control from fresh weights has no trained dense network.
        distilled = context.task.softens and (context.trained or context.config.from_scratch is None)
        dense = channels_last(state.dense)
        fitted.fit(
            context.data,
            config,
            terms=[OutOfDistributionDistillation(dense, autocast=context.inference_dtype)] if distilled else [],
            save=lambda fit_state: context.store.save_fit("bayesian", fit_state),
            state=context.store.fit_state("bayesian"),
            progress=context.config.progress,
            title="bayesian",
        )
        after = replace(state, spent=state.spend("bayesian", epochs))
        return after.with_extras(bayesian=fitted.state(), bayesian_seconds=context.store.seconds - state.seconds)

    return Stage("bayesian", run)
