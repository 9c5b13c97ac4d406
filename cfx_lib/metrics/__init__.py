"""Metrics of counterfactual explanations: one file per property, each returns a `Value` with an interval.

Metrics take a CFResult, a list of CFResults (the batches of one experiment) or the tensors themselves.
"""

from cfx_lib.metrics.closeness import lp_distance, lp_norm, lp_norms
from cfx_lib.metrics.cost import cost_per_explanation, costs, measure_flops
from cfx_lib.metrics.diversity import diversity
from cfx_lib.metrics.ground_truth import (
    displacement,
    edit_error,
    edit_region,
    grades,
    mask_overlap,
    outside_share,
)
from cfx_lib.metrics.validity import flip_rate, mean_confidence, semantic_flip_rate
from cfx_lib.metrics.value import Value, average, difference, rate, ratio

__all__ = [
    "Value",
    "average",
    "cost_per_explanation",
    "costs",
    "difference",
    "displacement",
    "diversity",
    "edit_error",
    "edit_region",
    "flip_rate",
    "grades",
    "lp_distance",
    "lp_norm",
    "lp_norms",
    "mask_overlap",
    "mean_confidence",
    "measure_flops",
    "outside_share",
    "rate",
    "ratio",
    "semantic_flip_rate",
]
