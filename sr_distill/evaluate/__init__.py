"""Evaluation by the protocol of the papers."""

from .metrics import psnr_y, ssim_y
from .protocol import describe_protocol, evaluate_set, find_lpips, metric_names
from .report import format_table, notes_on, write_report
from .sets import open_set

__all__ = [
    "describe_protocol",
    "evaluate_set",
    "find_lpips",
    "format_table",
    "metric_names",
    "notes_on",
    "open_set",
    "psnr_y",
    "ssim_y",
    "write_report",
]
