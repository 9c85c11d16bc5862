"""Pictures as the whole project sees them: 8-bit sRGB, upright, on white.

Every stage that looks at pixels goes through `decode`, so that a hash, a latent and a caption speak of the
same picture.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import EpsImagePlugin, ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

EpsImagePlugin.gs_binary = False  # PostScript is a program; a corpus must not run programs through Ghostscript.

MAX_PIXELS = 200_000_000
"""Default limit: a picture beyond it is a decompression bomb, or of no use for training."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


class Unreadable(Exception):  # noqa: N818 - what the picture is, not what went wrong
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
    """More than one in an animated file (or one with several pages); `image` is the first."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the first frame of an image file.

    Raises Unreadable with the reasons empty_file, not_an_image, too_many_pixels, or undecodable.
    """
    if not data:
        raise Unreadable("empty_file", "0 bytes")
    # Pillow looks at it again for pictures inside containers, whose size the container's header hides.
    Image.MAX_IMAGE_PIXELS = max_pixels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata; the picture itself is what counts.
        try:
            with Image.open(io.BytesIO(data)) as image:
                return _picture(image, max_pixels)
        except Unreadable:
            raise
        except UnidentifiedImageError:
            raise Unreadable("not_an_image", f"no decoder knows this file, it starts with {data[:8]!r}") from None
        except Image.DecompressionBombError:
            raise Unreadable("too_many_pixels", f"more than {max_pixels} pixels") from None
        except MemoryError:
            raise Unreadable("too_many_pixels", "out of memory while decoding") from None
        except Exception as error:  # Decoders raise almost anything on broken files: a row with a reason, never a stop.
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
    rgb = to_rgb(image)  # Before anything seeks to other frames: that would drop the pixels.
    return Picture(rgb, file_format, mode, alpha, _frames(image))


def _frames(image: Image.Image) -> int:
    if image.format in ("MPO", "PSD"):  # A gain map or the other eye, layers: no animation.
        return 1
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # A file whose later frames are broken still has a first one.
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright, 8-bit, sRGB, on white; a new image without metadata."""
    colours, alpha = _split(_upright(image))
    if profile := image.info.get("icc_profile"):
        colours = _to_srgb(colours, profile)
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours.convert("RGB") if colours.mode != "RGB" else colours, mask=alpha)
    return white


def _upright(image: Image.Image) -> Image.Image:
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image  # exif_transpose would copy it.
    return ImageOps.exif_transpose(image)


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, 8 bits deep, and the opacity, if the picture has any transparency."""
    if image.mode in ("I", "F", "I;16", "I;16L", "I;16B", "I;16N"):
        return _eight_bit(image)
    if not image.has_transparency_data:
        return image, None
    # Grey stays grey, for that is what its profile is about.
    full = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
    return full.convert(full.mode[:-1]), full.getchannel("A")


def _eight_bit(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Bring 16-bit, 32-bit and float greys to 8 bits; Pillow's own conversion would clip them to white."""
    values = np.array(image, dtype=np.float32)
    alpha = None
    if "transparency" in image.info:
        alpha = Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
    values[~np.isfinite(values)] = 0.0
    largest = values.max()
    if image.mode == "F" and largest <= 1.0:
        white = 1.0
    elif image.mode in ("I", "F") and largest <= 255.0:
        white = 255.0
    else:
        white = 65535.0
    values *= 255.0 / white
    values += 0.5
    np.clip(values, 0.0, 255.0, out=values)
    return Image.fromarray(values.astype(np.uint8)), alpha


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply the embedded profile; one that does not fit the pixels is ignored, as browsers do."""
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, _SRGB, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted if converted is not None else image
