"""All stages that pipelines are lists of, in one place."""

from pyrobnn.pipeline.rounds import Choose, accept, cut, cut_to, infer
from pyrobnn.pipeline.stage import Stage, back_to, run_stages
from pyrobnn.pipeline.training import reset, retune, train_dense, train_from_scratch, tune, tuned

__all__ = [
    "Choose",
    "Stage",
    "accept",
    "back_to",
    "cut",
    "cut_to",
    "infer",
    "reset",
    "retune",
    "run_stages",
    "train_dense",
    "train_from_scratch",
    "tune",
    "tuned",
]
