"""What is decoded as its owner sees it, and what is refused with the true reason."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from drifting import _checks
from drifting.data.images import load_images
from drifting.data.pixels import decode
from drifting.data.readers import EncodedImage
from drifting.errors import InputError
from tests.support.covering import each_once

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (6, 6, 3), dtype=np.uint8)
ALPHA = RNG.integers(0, 256, (6, 6), dtype=np.uint8)
# Turns that undo what a camera notes as its orientation, by numpy.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return EncodedImage(buffer.getvalue(), f"x.{kind}")


def on_white(colors, alpha):
    shares = alpha[..., None] / 255
    return torch.from_numpy(colors * shares + 255 * (1 - shares)).movedim(-1, 0)


@pytest.mark.parametrize("kind", ["png", "webp", "tiff"])
def test_transparent_colors_are_laid_on_white(kind):
    image = encoded(
        Image.fromarray(np.dstack([COLORS, ALPHA])), kind, **({"lossless": True, "exact": True} if kind == "webp" else {})
    )
    assert (decode([image])[0] - on_white(COLORS, ALPHA)).abs().max() <= 1


def test_hidden_colors_do_not_show():
    shown = []
    for hidden in (0, 200):
        array = np.dstack([np.full_like(COLORS, hidden), np.zeros_like(ALPHA)])
        array[2:4, 2:4] = (255, 0, 0, 255)
        shown.append(decode([encoded(Image.fromarray(array))], image_size=4))
    assert torch.equal(*shown)
    assert shown[0][0, :, 0, 0].tolist() == [255, 255, 255]


def test_transparent_grays_stay_gray():
    gray = COLORS[..., 0]
    found = decode([encoded(Image.fromarray(np.dstack([gray, ALPHA])))])
    assert found.shape == (1, 1, 6, 6)
    assert (found[0] - on_white(gray[..., None], ALPHA)).abs().max() <= 1


def test_transparent_entries_of_a_palette_and_color_keys():
    palette = Image.new("P", (6, 6), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    palette.paste(2, (0, 0, 3, 6))
    for transparency, kind in ((1, "png"), (bytes([255, 0, 255]), "png"), (1, "gif")):
        found = decode([encoded(palette, kind, transparency=transparency)])[0]
        assert found[:, 0, 5].tolist() == [255, 255, 255]
        assert found[:, 0, 0].tolist() == [70, 80, 90]
    key = Image.new("RGB", (4, 4), (1, 2, 3))
    assert decode([encoded(key, transparency=(1, 2, 3))]).unique().tolist() == [255]
    assert decode([encoded(Image.new("L", (4, 4), 7), transparency=7)]).unique().tolist() == [255]


def test_opaque_images_keep_every_pixel():
    opaque = np.dstack([COLORS, np.full_like(ALPHA, 255)])
    assert torch.equal(decode([encoded(Image.fromarray(opaque))])[0], torch.from_numpy(COLORS).movedim(-1, 0))


@pytest.mark.parametrize(*each_once(kind=("png", "jpeg", "webp", "tiff", "avif"), orientation=list(UPRIGHT)))
def test_images_of_every_format_are_turned_upright(kind, orientation):
    array = np.zeros((32, 48, 3), np.uint8)
    array[:16, :24], array[:16, 24:], array[16:, :24] = (250, 20, 20), (20, 250, 20), (20, 20, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind in ("png", "tiff") else {"quality": 95}
    found = decode([encoded(Image.fromarray(array), kind, exif=exif, **options)], image_size=32)
    upright = Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](array)))
    expected = decode([encoded(upright)], image_size=32)
    assert (found.int() - expected.int()).abs().float().mean() < 6


def test_damaged_note_of_the_camera_does_not_damage_the_image():
    image = encoded(Image.fromarray(COLORS), exif=b"Exif\0\0no such header")
    assert torch.equal(decode([image])[0], torch.from_numpy(COLORS).movedim(-1, 0))


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "jp2", "j2k", "qoi", "tga", "pnm", "dib", "mpo", "webp", "PNG"])
def test_files_of_further_suffixes_are_images(tmp_path, suffix):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(tmp_path / name / f"0.{suffix}", {"jfif": "jpeg"}.get(suffix))
    found = load_images(str(tmp_path))
    assert found.images.shape == (2, 3, 8, 8)
    assert (found.images.float() - 90).abs().max() <= 2
    assert found.left_out == ()


@pytest.mark.parametrize(
    ("image", "kind", "reason"),
    [
        (Image.new("LAB", (4, 4)), "tiff", "in the color space LAB: convert it to RGB"),
        (Image.new("F", (4, 4)), "tiff", r"more than 8 bits to a value \(mode F\): convert it to 8 bits"),
        (Image.new("I;16", (4, 4)), "png", r"more than 8 bits to a value \(mode I;16\): convert"),
    ],
)
def test_what_is_not_converted_is_refused_for_its_reason(image, kind, reason):
    with pytest.raises(InputError, match=reason):
        decode([encoded(image, kind)])


def deep_png(kind, bits=16):
    """Return a PNG of a color type: 2 is RGB, 4 gray and alpha, 6 RGBA."""
    values = 4 * {2: 3, 4: 2, 6: 4}[kind] * bits // 8
    parts = (b"IHDR", struct.pack(">IIBBBBB", 4, 4, bits, kind, 0, 0, 0)), (b"IDAT", zlib.compress((b"\0" + b"\1" * values) * 4))
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (*parts, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep_tiff(bits=16):
    """Return a TIFF of RGB, 4 x 4."""
    size = 48 * bits // 8
    tags = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 128), (277, 3, 1, 3), (278, 3, 1, 4), (279, 4, 1, size)]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + b"\0" * 4
    return head + struct.pack("<HHH", bits, bits, bits) + b"\1" * size


DEEP = {
    **{f"png of type {kind}": deep_png(kind) for kind in (2, 4, 6)},
    **{f"ppm up to {most}": b"P6 4 4 %d\n" % most + b"\1" * 96 for most in (256, 1023, 65535)},
    "ppm in words": b"P3 4 4 65535\n" + b"300 " * 48,
    "tiff": deep_tiff(),
}


@pytest.mark.parametrize("name", DEEP)
def test_colors_of_more_than_8_bits_are_refused_as_grays_are(name):
    with pytest.raises(InputError, match=r"holds 'deep' of more than 8 bits to a value \(mode RGBA?\): convert it to 8 bits"):
        decode([EncodedImage(DEEP[name], "deep")])


@pytest.mark.parametrize(
    "content",
    [
        *(deep_png(kind, 8) for kind in (2, 4, 6)),
        deep_tiff(8),
        *(b"P6 4 4 %d\n" % most + b"\1" * 48 for most in (100, 255)),
        b"P4 4 4\n" + b"\1" * 4,
    ],
    ids=["png 2", "png 4", "png 6", "tiff", "ppm up to 100", "ppm up to 255", "bits"],
)
def test_what_has_8_bits_or_fewer_is_decoded(content):
    assert decode([EncodedImage(content, "x")]).shape[2:] == (4, 4)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_colors_of_print_and_video_are_converted(mode):
    image = Image.new("RGB", (8, 8), (200, 40, 90)).convert(mode)
    assert torch.allclose(decode([encoded(image, "tiff")])[0, :, 0, 0].float(), torch.tensor([200.0, 40, 90]), atol=3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff", "gif", "avif", "webp", "jpeg2000", "tga", "ico"])
def test_damaged_images_end_in_one_sentence(kind):
    whole = encoded(Image.fromarray(RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)), kind).content
    chance, refused = np.random.default_rng(1), []
    for _ in range(60):
        bent = bytearray(whole)
        for place in chance.integers(0, min(len(bent), 200), 5):
            bent[place] = chance.integers(256)
        try:
            decode([EncodedImage(bytes(bent), "x")], image_size=8)
        except InputError as error:
            refused.append(str(error))
    assert refused
    assert all("data holds 'x'" in line and "\n" not in line and len(line) <= 300 for line in refused)


def declared(width, height):
    """Return a PNG whose head declares a size that its body does not have."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + head
        + struct.pack(">I", zlib.crc32(b"IHDR" + head))
        + b"\0\0\0\0IEND"
    )


@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_giant_images_are_refused_before_they_are_decoded(side):
    with pytest.raises(InputError, match=r"giant\.png', an image of more than 178,956,970 pixels: shrink it"):
        decode([EncodedImage(declared(side, side), "giant.png")])


def test_programs_of_a_print_format_are_not_started():
    script = EncodedImage(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "x.png")
    with pytest.raises(InputError, match="not an image of a format that can be decoded"):
        decode([script])


@pytest.mark.parametrize("size", [100_000, 10**9])
def test_images_that_do_not_fit_into_memory_are_refused_before_decoding(monkeypatch, size):
    monkeypatch.setattr(_checks, "available_memory", lambda: 2**30)
    images = [EncodedImage(b"never looked at", "x")] * 40
    with pytest.raises(
        InputError, match=rf"image_size is {size}, at which 40 images need .* GiB of memory, .* smaller --image-size"
    ):
        decode(images, image_size=size)


def test_stored_sizes_that_do_not_fit_into_memory_are_refused(monkeypatch):
    monkeypatch.setattr(_checks, "available_memory", lambda: 10_000)
    images = [encoded(Image.new("RGB", (64, 64)))] * 2
    with pytest.raises(InputError, match=r"of 64 x 64 pixels, of which 2 images need .*: pass --image-size"):
        decode(images)
    assert decode(images, image_size=8).shape == (2, 3, 8, 8)


def test_this_system_reports_its_memory():
    assert 2**20 < _checks.available_memory() < 2**50


def test_warnings_of_the_decoder_stay_off_the_terminal_and_settings_are_restored(monkeypatch, capfd):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    image = encoded(Image.new("RGB", (6, 6)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        threads = [threading.Thread(target=decode, args=([image] * 20,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == []
        Image.open(io.BytesIO(image.content)).close()
        assert [warning.category for warning in seen] == [Image.DecompressionBombWarning]
    assert capfd.readouterr() == ("", "")
