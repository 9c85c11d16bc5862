"""Pictures as the whole project sees them: 8-bit sRGB, upright, on white.

Every stage that looks at pixels goes through `decode`, so that a hash, a latent and a caption speak of the
same picture.
"""

import io
import warnings
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import EpsImagePlugin, ExifTags, Image, ImageCms, UnidentifiedImageError

EpsImagePlugin.gs_binary = False  # PostScript is a program; a corpus must not run programs through Ghostscript.

MAX_PIXELS = 200_000_000
"""Default limit: a picture beyond it is a decompression bomb, or of no use for training."""

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation; from 5 on, width and height change places."""


_LEVELS = np.linspace(0, 255, 18, dtype=np.uint8)
_PROBE = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS), axis=-1).reshape(18, -1, 3)
"""A grid of colours, as a picture."""


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
    size: tuple[int, int]
    """Width and height of the whole picture, upright."""
    scale: int
    """`image` is the picture reduced by this factor: 1, or 2, 4, 8 where the decoder was asked to reduce."""
    format: str
    mode: str
    """Pillow's name of the pixel format in the file."""
    alpha: bool
    """The file has an alpha channel or a transparent colour."""
    quality: int | None
    """Quality factor of a JPEG, 1 to 100, by its luminance table; None for other formats."""
    frames: int
    """More than one in an animated file (or one with several pages); `image` is the first."""


def decode(data: bytes, max_pixels: int = MAX_PIXELS, enough: tuple[int, int] | None = None) -> Picture:
    """Decode the first frame of an image file.

    `enough` is how many pixels the longer and the shorter side need, where the picture has them: a JPEG is reduced by
    2, 4 or 8 while it is decoded, each pixel the mean of a square, which costs a fraction of the time. All other
    formats are decoded in full. Either way the whole file is read: what is broken is refused.

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
                return _picture(image, max_pixels, enough)
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


def is_plain_jpeg(data: bytes, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether these are the bytes of a JPEG that any decoder would decode to the same colours, upright.

    That is one without a profile that changes colours, in grey or YCbCr, baseline: other kinds are rare, and slow or
    wrong elsewhere. Only its header is looked at.
    """
    if not data.startswith(b"\xff\xd8"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                return _is_plain(image) and image.width * image.height <= max_pixels
        except Exception:  # Whatever it is, `decode` will say.
            return False


def _is_plain(image: Image.Image) -> bool:
    if image.format != "JPEG" or image.mode not in ("L", "RGB") or "progressive" in image.info:
        return False
    layers: list[tuple[int, ...]] = image.layer  # type: ignore[attr-defined]
    if image.mode == "RGB" and (image.info.get("adobe_transform", 1) != 1 or layers[0][0] == ord("R")):
        return False  # Not YCbCr.
    profile = image.info.get("icc_profile")
    return _orientation(image) == 1 and (not profile or _transform(_undated(profile), image.mode) is None)


def _picture(image: Image.Image, max_pixels: int, enough: tuple[int, int] | None) -> Picture:
    width, height = image.size
    if width * height > max_pixels:
        raise Unreadable("too_many_pixels", f"{width} x {height} is more than {max_pixels} pixels")
    if not width or not height:
        raise Unreadable("undecodable", f"{width} x {height} pixels")
    file_format, mode = image.format or "", image.mode
    scale = _ask_for_less(image, enough) if enough else 1
    image.load()
    alpha = image.has_transparency_data
    rgb = to_rgb(image)  # Before anything seeks to other frames: that would drop the pixels.
    upright = (height, width) if _orientation(image) >= 5 else (width, height)
    # The header of a container may have said something else than the picture inside it.
    size = rgb.size if scale == 1 else upright
    return Picture(rgb, size, scale, file_format, mode, alpha, _quality(image), _frames(image))


def _ask_for_less(image: Image.Image, enough: tuple[int, int]) -> int:
    """Have the decoder reduce the picture, if it can; returns the factor."""
    longer = max(image.size)
    image.draft(None, enough if image.width == longer else enough[::-1])
    return round(longer / max(image.size))  # The reduced side is rounded up.


def _quality(image: Image.Image) -> int | None:
    """The factor for which libjpeg's luminance table is as coarse as that of the picture, on average."""
    tables = getattr(image, "quantization", None)
    if not tables:
        return None
    return 1 + int(np.abs(_coarseness() - sum(tables[min(tables)])).argmin())


@cache
def _coarseness() -> NDArray[np.int64]:
    """(100,): the sum of libjpeg's luminance table for each quality factor from 1 on."""
    sums = []
    for quality in range(1, 101):
        buffer = io.BytesIO()
        Image.new("L", (8, 8)).save(buffer, "JPEG", quality=quality)
        with Image.open(buffer) as image:
            sums.append(sum(image.quantization[0]))  # type: ignore[attr-defined]
    return np.array(sums)


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
    if alpha is None:
        rgb = colours.convert("RGB")
        rgb.info = {}
    else:
        rgb = Image.new("RGB", colours.size, "white")
        rgb.paste(colours, mask=alpha)
    return rgb


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(ExifTags.Base.Orientation)
    return found if found in _TURNS else 1


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose would copy upright pictures, and write the metadata of others anew.
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, 8 bits deep, and a mask with the opacity, if the picture has any transparency.

    Both may be the same image with an alpha channel: pasting looks at the colours of one and the opacity of the other.
    """
    if image.mode in ("I", "F", "I;16", "I;16L", "I;16B", "I;16N"):
        return _eight_bit(image)
    if not image.has_transparency_data:
        return image, None
    if image.mode not in ("LA", "RGBA"):
        # Grey stays grey, for that is what its profile is about.
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    return image, image


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
    mode = image.mode if image.mode in ("RGB", "L", "CMYK") else "L" if image.mode in ("1", "LA") else "RGB"
    transform = _transform(_undated(profile), mode)
    if transform is None:
        return image
    return ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform) or image


def _undated(profile: bytes) -> bytes:
    """Some programs make the same profile anew for every picture."""
    return profile[:24] + bytes(12) + profile[36:]


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where the profile does not fit the mode, and where it is sRGB itself.

    It is when it moves no colour of a grid by more than one level of 255, the rounding in other people's tables. Most
    profiles out there are, and colours that stay as they are need no time.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
    if mode != "RGB":
        return transform
    probe = Image.fromarray(_PROBE)
    moved = np.abs(np.asarray(ImageCms.applyTransform(probe, transform), dtype=np.int16) - _PROBE)
    return None if moved.max() <= 1 else transform
