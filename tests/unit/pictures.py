"""Image files in memory, as Pillow writes them and as the package does."""

from __future__ import annotations

import io

from PIL import Image, ImageCms

from sr_distill.infer import write_picture
from sr_distill.infer.metadata import Metadata
from sr_distill.infer.picture import Frame, Picture
from sr_distill.infer.rows import rows_of

from ..conftest import natural_image

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PHOTO = Image.fromarray(natural_image(24, 34))


def saved(image, kind, **settings):
    """By Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def written(pixels, kind, metadata=Metadata()):  # noqa: B008
    """By the package."""
    buffer = io.BytesIO()
    write_picture(buffer, Picture("PNG", (Frame(rows_of(pixels)),), metadata), kind)
    return buffer.getvalue()
