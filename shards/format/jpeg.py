"""Pictures as JPEG, written and read by Pillow.

Its decoder, libjpeg-turbo, computes in whole numbers, so that all machines read the same pixels. It releases
the interpreter's lock, so several threads decode at the same time. A GPU's decoder (nvJPEG) rounds otherwise:
a run would see other pixels there than on a CPU, and depend on its machine. So none is used.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def encode_jpeg(picture: np.ndarray, quality: int) -> bytes:
    """uint8 RGB [H, W, 3] -> the bytes of a JPEG, its colors at half the resolution, as is usual."""
    file = io.BytesIO()
    pillow().fromarray(picture).save(file, "JPEG", quality=quality)
    return file.getvalue()


def decode_jpeg_into(content: bytes | memoryview, picture: np.ndarray) -> None:
    """Read a JPEG into uint8 RGB [H, W, 3].

    Raises:
        ValueError: not a JPEG, damaged, or of another size than `picture`, which is then not decoded.
    """
    height, width, _ = picture.shape
    image = pillow()
    try:
        with image.open(io.BytesIO(content), formats=["JPEG"]) as found:
            if (found.width, found.height, found.mode) != (width, height, "RGB"):
                raise ValueError(
                    f"is {found.mode} of {found.width} x {found.height}, not RGB of {width} x {height}"
                )
            picture[:] = np.asarray(found)
    except image.UnidentifiedImageError:  # its message holds an address of memory
        raise ValueError("not a JPEG that can be read (it does not begin as one)") from None
    # Pillow raises the first two for damaged files, and the others for a header that claims very many pixels:
    # the last is a warning, which a program may turn into an error.
    except (OSError, SyntaxError, image.DecompressionBombError, image.DecompressionBombWarning) as error:
        raise ValueError(f"not a JPEG that can be read ({error})") from None


def least_jpeg_bytes(numbers: int) -> int:
    """The fewest bytes of a JPEG by `encode_jpeg` of so many numbers (height x width x 3).

    A block of 8 x 8 values takes two bits at least, for its mean and for its end. With colors at half the
    resolution, six blocks hold 768 numbers. So a small file cannot claim a picture that fills the memory.
    """
    return max(1, numbers // 512)


def pillow() -> Any:
    """Pillow's module Image.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError('pictures as JPEG need Pillow: pip install "Pillow>=10"') from None
    return Image
