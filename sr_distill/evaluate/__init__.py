"""Evaluation by the protocol of the papers."""

from ..callable import make_callable
from ..registry import METRICS, register_metric
from .known import KnownSet, known_sets, remarks_on
from .measures import ImagePair, psnr_rgb, psnr_y, ssim_rgb, ssim_y
from .metrics import Metric, MetricOptions, ScaledMetric, find_lpips, make_metric
from .page import write_page
from .profile import RUNTIMES, Profile, count_cost, profile_model, time_passes
from .protocol import AGREEMENT, SetResult, default_metrics, describe_protocol, evaluate_set, mean_scores
from .report import Report, format_table, notes_on, write_report
from .select import best_within, cost_of, pareto_front, parse_budget
from .sets import BenchmarkSet, open_set
from .teacher_check import compare_teacher
from .validation import Validation

__all__ = [
    "AGREEMENT",
    "METRICS",
    "RUNTIMES",
    "BenchmarkSet",
    "ImagePair",
    "KnownSet",
    "Metric",
    "MetricOptions",
    "Profile",
    "Report",
    "ScaledMetric",
    "SetResult",
    "Validation",
    "best_within",
    "compare_teacher",
    "cost_of",
    "count_cost",
    "default_metrics",
    "describe_protocol",
    "evaluate_set",
    "find_lpips",
    "format_table",
    "known_sets",
    "make_metric",
    "mean_scores",
    "notes_on",
    "open_set",
    "pareto_front",
    "parse_budget",
    "profile_model",
    "psnr_rgb",
    "psnr_y",
    "register_metric",
    "remarks_on",
    "ssim_rgb",
    "ssim_y",
    "time_passes",
    "write_page",
    "write_report",
]

make_callable(__name__)
