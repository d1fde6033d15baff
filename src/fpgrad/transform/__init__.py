"""From a model's forward function to training, evaluation and prediction steps ready for codegen.

Losses, metrics, regularisers and optimizers are in the modules of those names.
"""

from fpgrad.transform.accumulate import Accumulate, coupling
from fpgrad.transform.build import (
    LOSS_SUM,
    REGULARISATION_SUM,
    LossTerm,
    MetricTerm,
    build_evaluation,
    build_prediction,
    build_training,
)
from fpgrad.transform.choice import cost
from fpgrad.transform.cores import SumOverCores, partial_sums
from fpgrad.transform.optimizers import Optimizer, slot_state
from fpgrad.transform.pipeline import (
    FORWARD,
    LOWERING,
    lower,
    lower_split,
    lowering,
    run_pass,
    run_pipeline,
)
from fpgrad.transform.recompute import Recompute, recomputed
from fpgrad.transform.regularisers import L1L2
from fpgrad.transform.rewrite import Pass
from fpgrad.transform.split import SplitChannels

__all__ = [
    "FORWARD",
    "L1L2",
    "LOSS_SUM",
    "LOWERING",
    "REGULARISATION_SUM",
    "Accumulate",
    "LossTerm",
    "MetricTerm",
    "Optimizer",
    "Pass",
    "Recompute",
    "SplitChannels",
    "SumOverCores",
    "build_evaluation",
    "build_prediction",
    "build_training",
    "cost",
    "coupling",
    "lower",
    "lower_split",
    "lowering",
    "partial_sums",
    "recomputed",
    "run_pass",
    "run_pipeline",
    "slot_state",
]
