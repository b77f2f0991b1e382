"""A posterior as plain data (dicts and tensors), for checkpoints."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from pyrobnn.summary.types import ChannelSummary, Convergence, Posterior, SiteSummary


def to_state(posterior: Posterior) -> dict[str, Any]:
    """Everything but live objects; loadable with `weights_only=True`."""

    def flat(item: Any) -> dict[str, Any]:
        return {f.name: getattr(item, f.name) for f in fields(item)}

    return {
        "sites": {name: {**flat(site), "dims": list(site.dims)} for name, site in posterior.sites.items()},
        "channels": {name: flat(channel) for name, channel in posterior.channels.items()},
        "draws": dict(posterior.draws),
        "predictive": posterior.predictive,
        "history": list(posterior.history),
        "net_widths": {name: list(pair) for name, pair in posterior.net_widths.items()},
        "trajectories": [{name: dict(parts) for name, parts in entry.items()} for entry in posterior.trajectories],
        "convergence": None if posterior.convergence is None else flat(posterior.convergence),
    }


def from_state(state: dict[str, Any]) -> Posterior:
    """What :func:`to_state` wrote."""
    return Posterior(
        sites={name: SiteSummary(**{**site, "dims": tuple(site["dims"])}) for name, site in state["sites"].items()},
        channels={name: ChannelSummary(**channel) for name, channel in state["channels"].items()},
        draws=state["draws"],
        predictive=state["predictive"],
        history=state["history"],
        net_widths={name: (pair[0], pair[1]) for name, pair in state["net_widths"].items()},
        trajectories=state.get("trajectories", []),
        convergence=Convergence(**state["convergence"]) if state.get("convergence") else None,
    )
