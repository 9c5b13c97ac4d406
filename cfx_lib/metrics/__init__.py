"""Metrics of counterfactual explanations: one file per property, each returns a `Value` with an interval.

Metrics take a CFResult, a list of CFResults (the batches of one experiment) or the tensors themselves.
"""

from cfx_lib.metrics.attributes import (
    attribute_correlations,
    attribute_mixing,
    change_correlations,
    correlation_difference,
    mnac,
)
from cfx_lib.metrics.closeness import (
    lp_distance,
    lp_norm,
    lp_norms,
    lpips,
    lpips_distance,
    perceptual_network,
)
from cfx_lib.metrics.cost import cost_per_explanation, costs, measure_flops, measure_peak_memory
from cfx_lib.metrics.diversity import diversity
from cfx_lib.metrics.frechet import frechet_distance
from cfx_lib.metrics.ground_truth import (
    displacement,
    edit_error,
    edit_region,
    grades,
    mask_overlap,
    outside_share,
)
from cfx_lib.metrics.realism import crossover_fid, fid, sfid
from cfx_lib.metrics.reconstruction import im1, im2
from cfx_lib.metrics.saliency import (
    SaliencyCurves,
    insertion_deletion,
    insertion_deletion_curves,
    map_correlation,
)
from cfx_lib.metrics.shortcuts import CollateralChanges, ShortcutRecall, collateral_changes, shortcut_recall
from cfx_lib.metrics.similarity import fs, fva, s3
from cfx_lib.metrics.transition import TransitionCurves, cout, transition_curves
from cfx_lib.metrics.validity import flip_rate, mean_confidence, semantic_flip_rate
from cfx_lib.metrics.value import Value, average, difference, rate, ratio

__all__ = [
    "CollateralChanges",
    "SaliencyCurves",
    "ShortcutRecall",
    "TransitionCurves",
    "Value",
    "attribute_correlations",
    "attribute_mixing",
    "average",
    "change_correlations",
    "collateral_changes",
    "correlation_difference",
    "cost_per_explanation",
    "costs",
    "cout",
    "crossover_fid",
    "difference",
    "displacement",
    "diversity",
    "edit_error",
    "edit_region",
    "fid",
    "flip_rate",
    "frechet_distance",
    "fs",
    "fva",
    "grades",
    "im1",
    "im2",
    "insertion_deletion",
    "insertion_deletion_curves",
    "lp_distance",
    "lp_norm",
    "lp_norms",
    "lpips",
    "lpips_distance",
    "map_correlation",
    "mask_overlap",
    "mean_confidence",
    "measure_flops",
    "measure_peak_memory",
    "mnac",
    "outside_share",
    "perceptual_network",
    "rate",
    "ratio",
    "s3",
    "semantic_flip_rate",
    "sfid",
    "shortcut_recall",
    "transition_curves",
]
