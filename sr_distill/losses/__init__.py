"""Losses: pure functions, and beside each its options, which make it a term of the objective."""

from ..registry import LOSSES
from .activation import activation_boundary, attention_transfer, cosine, fitnet, frequency
from .base import Comparison, FeatureLoss, Loss, LossInputs, MatchedMaps, register_loss
from .classes import decoupled, dist
from .contrastive import contrastive
from .distribution import channel_wise, hard_soft, logits, mutual, soft_target
from .fcfd import FCFD
from .feature_cache import feature_cache
from .perceptual import ImageLoss, lpips, normalised_difference, perceptual
from .pixel import PixelLoss, charbonnier, l1, mse
from .relation import RelationLoss, pkt, rkd, similarity, spatial_affinity
from .representation import contrastive_representation

__all__ = [
    "FCFD",
    "LOSSES",
    "Comparison",
    "FeatureLoss",
    "ImageLoss",
    "Loss",
    "LossInputs",
    "MatchedMaps",
    "PixelLoss",
    "RelationLoss",
    "activation_boundary",
    "attention_transfer",
    "channel_wise",
    "charbonnier",
    "contrastive",
    "contrastive_representation",
    "cosine",
    "decoupled",
    "dist",
    "feature_cache",
    "fitnet",
    "frequency",
    "hard_soft",
    "l1",
    "logits",
    "lpips",
    "mse",
    "mutual",
    "normalised_difference",
    "perceptual",
    "pkt",
    "register_loss",
    "rkd",
    "similarity",
    "soft_target",
    "spatial_affinity",
]
