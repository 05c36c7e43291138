"""Distil a large image super-resolution teacher into a student small enough for a phone.

Images are RGB float in [0, 1], shape (B, 3, H, W), everywhere between modules. A module imports only what
stands before it in this line:

    options -> data -> models -> features -> losses -> train -> evaluate -> infer -> zoo -> cli
"""

__version__ = "0.1.0"
