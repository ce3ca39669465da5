"""Drift fields: functions of generated and real samples that return the direction in which each generated sample should move."""

from drifting.fields.backends import mean_shift
from drifting.fields.base import DriftField, Field, Peers, Statistics
from drifting.fields.batch import BatchStatistics
from drifting.fields.diagnostics import KernelStatistics
from drifting.fields.energy_distance import EnergyDistance
from drifting.fields.kernel_gradient import KernelGradient
from drifting.fields.lookahead import Lookahead
from drifting.fields.maximum_mean_discrepancy import MaximumMeanDiscrepancy
from drifting.fields.mean_shift import MeanShift
from drifting.fields.sinkhorn import Sinkhorn, SinkhornStatistics

__all__ = [
    "BatchStatistics",
    "DriftField",
    "EnergyDistance",
    "Field",
    "KernelGradient",
    "KernelStatistics",
    "Lookahead",
    "MaximumMeanDiscrepancy",
    "MeanShift",
    "Peers",
    "Sinkhorn",
    "SinkhornStatistics",
    "Statistics",
    "mean_shift",
]
