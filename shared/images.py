"""Pictures as the whole project sees them: 8-bit sRGB, upright, on white.

Every stage that looks at pixels goes through `decode`, so that a hash, a latent and a caption speak of the
same picture.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

# The limit is `max_pixels` of `decode`, checked on the header; Pillow's own would warn first and then raise.
Image.MAX_IMAGE_PIXELS = None

MAX_PIXELS = 200_000_000
"""Default limit: a picture beyond it is a decompression bomb, or of no use for training."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class Unreadable(Exception):
    """A picture that cannot be decoded. `reason` is a stable word, `detail` says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class Picture:
    """A decoded picture and what its file said about it."""

    image: Image.Image
    """Mode RGB, upright, sRGB, transparency composited on white."""
    format: str
    mode: str
    """Pillow's name of the pixel format in the file."""
    alpha: bool
    """The file has an alpha channel or a transparent colour."""
    frames: int
    """More than one in an animated file; `image` is the first."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the first frame of an image file.

    Raises Unreadable with the reasons empty_file, not_an_image, too_many_pixels, or undecodable.
    """
    if not data:
        raise Unreadable("empty_file", "0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata; the picture itself is what counts.
        try:
            with Image.open(io.BytesIO(data)) as image:
                return _picture(image, max_pixels)
        except Unreadable:
            raise
        except UnidentifiedImageError:
            raise Unreadable(
                "not_an_image", f"no decoder knows this file, it starts with {data[:8]!r}"
            ) from None
        except MemoryError:
            raise Unreadable("too_many_pixels", "out of memory while decoding") from None
        except (
            Exception
        ) as error:  # Decoders raise almost anything on broken files: a row with a reason, never a stop.
            raise Unreadable("undecodable", f"{type(error).__name__}: {error}") from None


def _picture(image: Image.Image, max_pixels: int) -> Picture:
    width, height = image.size
    if width * height > max_pixels:
        raise Unreadable("too_many_pixels", f"{width} x {height} is more than {max_pixels} pixels")
    if not width or not height:
        raise Unreadable("undecodable", f"{width} x {height} pixels")
    file_format, mode = image.format or "", image.mode
    image.load()
    alpha = image.has_transparency_data
    frames = _frames(image)
    image.seek(0)
    return Picture(to_rgb(image), file_format, mode, alpha, frames)


def _frames(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # A file whose later frames are broken still has a first one.
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, 8-bit, sRGB, on white."""
    profile = image.info.get("icc_profile")
    upright = ImageOps.exif_transpose(image)
    pixels = _eight_bit(upright)
    if pixels.has_transparency_data:
        rgba = pixels.convert("RGBA")
        rgb, alpha = rgba.convert("RGB"), rgba.getchannel("A")
    else:
        rgb, alpha = pixels, None
    if profile:
        rgb = _to_srgb(rgb, profile)
    rgb = rgb.convert("RGB")
    if alpha is None:
        return rgb
    white = Image.new("RGB", rgb.size, "white")
    white.paste(rgb, mask=alpha)
    return white


def _eight_bit(image: Image.Image) -> Image.Image:
    """Bring 16-bit, 32-bit and float greys to 8 bits; Pillow's own conversion would clip them to white."""
    if image.mode not in ("I", "F", "I;16", "I;16L", "I;16B", "I;16N"):
        return image
    values = np.asarray(image, dtype=np.float64)
    top = 1.0 if image.mode == "F" and values.max() <= 1.0 else 255.0 if values.max() <= 255.0 else 65535.0
    if image.mode.startswith("I;16"):
        top = 65535.0
    return Image.fromarray((np.clip(values / top, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply the embedded profile; one that does not fit the pixels is ignored, as browsers do."""
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted if converted is not None else image
