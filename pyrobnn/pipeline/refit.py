"""After the road: the posterior of what was kept, around the compact network."""

from __future__ import annotations

from pyrobnn.errors import CheckpointError
from pyrobnn.inference.config import FitConfig
from pyrobnn.inference.off_data import OffData
from pyrobnn.inference.precision import channels_last
from pyrobnn.pipeline.journal import Carry
from pyrobnn.pipeline.run import Run
from pyrobnn.posterior.bayesian_net import BayesianNet, settings
from pyrobnn.posterior.draws import surviving_scales


def survive(run: Run, epochs: int) -> None:
    """Fit a Gaussian posterior around the tuned compact network, as a step of its own.

    It starts as wide as the posterior of the kept coordinates was, or narrower by a factor, if the ELBO of weights
    that are independent wants that. Roads that fold their noise away
    round by round (`rbp`) and controls carry none to the end; there it starts at a tenth of the weights.
    The dense network teaches what to answer where there are no data. The compact network itself stays as it is.
    Weights that the method zeroed one by one get a posterior like the others.

    Raises:
        CheckpointError: the run has a posterior of another number of epochs.
    """

    had = run.carry["epochs"].get("bayesian")
    if had is not None and had != epochs:
        raise CheckpointError(
            f"this run has a posterior of {had} epochs, not {epochs}: leave --bayesian-epochs out, or choose another --out"
        )
    # A control from fresh weights has no dense network that could teach.
    taught = run.classifies and (run.trained or not run.carry.get("scratch"))

    def function(carry: Carry) -> Carry:
        net, scales = run.net().cpu(), None
        if carry.get("guide") is not None:
            model, guide = run.bayesian()
            scales = surviving_scales(model.cpu(), guide.cpu(), seed=run.seed("survive"))
        fitted = BayesianNet.around(net, data_size=len(run.data.train), scales=scales, likelihood=run.likelihood)
        config = run.settings_of(FitConfig(**settings(net)), "bayesian", epochs, validate=False)
        fitted.choose_width(run.data.train, kl_weight=settings(net)["kl_schedule"], seed=run.seed("width"))
        fitted.fit(
            run.data,
            config,
            terms=[OffData(channels_last(run.net("dense")), autocast=run.quick())] if taught else [],
            save=run.journal.save_fit,
            state=run.journal.fit_state,
            progress=run.progress,
            title="bayesian",
        )
        return {
            "bayesian": fitted.state(),
            "epochs": {**carry["epochs"], "bayesian": epochs},
            "seconds": run.journal.seconds,
            "bayesian_seconds": run.journal.seconds - carry["seconds"],
        }

    run.journal.step("bayesian", function)
