"""Feature maps: which layers are compared, how they are read and made alike; pretrained networks for perceptual losses."""

from .adapters import Adapter, Bridge, Units
from .backbones import imagenet_normalised, lpips_network, photograph, vgg19_features
from .pairs import FeaturePair, choose_pairs
from .substitution import ReplayTaps
from .tapped import Need, TappedModel, TappedTeacher
from .taps import TapPoint, Taps, list_taps

__all__ = [
    "Adapter",
    "Bridge",
    "FeaturePair",
    "Need",
    "ReplayTaps",
    "TapPoint",
    "TappedModel",
    "TappedTeacher",
    "Taps",
    "Units",
    "choose_pairs",
    "imagenet_normalised",
    "list_taps",
    "lpips_network",
    "photograph",
    "vgg19_features",
]
