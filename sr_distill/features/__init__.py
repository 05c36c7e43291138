"""Pretrained feature networks for perceptual losses and metrics."""

from .backbones import lpips_network, vgg19_features

__all__ = ["lpips_network", "vgg19_features"]
