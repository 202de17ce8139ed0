"""Damaged and hostile image files, made from a few good ones: what networks, disks and strangers hand to a reader.

`hostile_files(seed, count)` gives the same files for the same numbers. Each says whether it must be bad, must be good,
or may be either: a flipped bit can leave a picture that every decoder takes.
"""

import functools
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from made_images import encode, noise, photo
from PIL import Image, features

# The limit that readers of these files are meant to have: bombs are far above it, `large.gif` is below.
MAX_PIXELS = 40_000_000

BAD, GOOD, EITHER = "bad", "good", "either"


@dataclass(frozen=True)
class HostileFile:
    """A file to be read.

    Attributes:
        name: of the file, which tells format and kind of damage.
        verdict: BAD, GOOD or EITHER.
        data: its bytes; empty where `make` puts something else in its place.
        make: puts something at a path that is no plain file.
    """

    name: str
    verdict: str
    data: bytes = b""
    make: Callable[[Path], None] | None = None

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        if self.make is None:
            path.write_bytes(self.data)
        else:
            self.make(path)
        return path


@functools.cache
def good_images() -> dict[str, bytes]:
    """Whole files of each format and kind of pixel, by file name."""
    rgb, grey = photo(), photo()[..., 0]
    rgba = np.dstack([rgb, grey])
    sixteen = grey.astype(np.uint16) * 257
    palette = Image.fromarray(rgb).quantize(64)
    cmyk = Image.fromarray(rgb).convert("CMYK")
    frames = [Image.fromarray(np.roll(rgb, shift, axis=0)) for shift in (3, 6)]
    return {
        "rgb.jpg": encode(rgb, "JPEG"),
        "progressive.jpg": encode(rgb, "JPEG", progressive=True),
        "restart.jpg": encode(rgb, "JPEG", restart_marker_rows=1),
        "grey.jpg": encode(grey, "JPEG"),
        "cmyk.jpg": encode(cmyk, "JPEG"),
        "exif.jpg": encode(rgb, "JPEG", exif=b"Exif\0\0" + exif_block([(0x0112, 3, 1, 6)])),
        "rgb.png": encode(rgb, "PNG"),
        "grey.png": encode(grey, "PNG"),
        "alpha.png": encode(rgba, "PNG"),
        "palette.png": encode(palette, "PNG", transparency=bytes(range(64))),
        "sixteen.png": encode(sixteen, "PNG"),
        "bilevel.png": encode(Image.fromarray(grey).convert("1"), "PNG"),
        "frames.png": encode(Image.fromarray(rgb), "PNG", save_all=True, append_images=frames),
        "palette.gif": encode(palette, "GIF"),
        "frames.gif": encode(Image.fromarray(rgb), "GIF", save_all=True, append_images=frames),
        "rgb.bmp": encode(rgb, "BMP"),
        "palette.bmp": encode(palette, "BMP"),
        "rgb.tif": encode(rgb, "TIFF"),
        "lzw.tif": encode(rgb, "TIFF", compression="tiff_lzw"),
        "deflate.tif": encode(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "jpeg.tif": encode(rgb, "TIFF", compression="jpeg"),
        "cmyk.tif": encode(cmyk, "TIFF"),
        "sixteen.tif": encode(sixteen, "TIFF"),
        "lossy.webp": encode(rgb, "WEBP"),
        "lossless.webp": encode(rgb, "WEBP", lossless=True),
        "alpha.webp": encode(rgba, "WEBP"),
        "rgb.ppm": encode(rgb, "PPM"),
        "grey.pgm": encode(grey, "PPM"),
        "image.tga": encode(rgb, "TGA"),
        "rle.tga": encode(rgba, "TGA", compression="tga_rle"),
        "icon.ico": encode(Image.fromarray(rgba), "ICO", sizes=[(32, 32), (16, 16)]),
        **({"image.jp2": encode(rgb, "JPEG2000")} if features.check("jpg_2000") else {}),
        **({"image.avif": encode(rgb, "AVIF")} if features.check("avif") else {}),
        "wide.ppm": b"P6 9 5 65535\n" + noise(5, 9, 6).tobytes(),
    }


def hostile_files(seed: int, count: int) -> list[HostileFile]:
    """`count` files: the crafted ones first, in an order that `seed` mixes, filled up with random damage."""
    generator = np.random.default_rng(seed)
    crafted = [*lying_headers(), *bombs(), *wrong_types(), *no_files()]
    if count < 2 * len(crafted):
        crafted = [crafted[place] for place in generator.permutation(len(crafted))[: count // 2]]
    whole = list(good_images().items())
    damaged = []
    for number in range(count - len(crafted)):
        name, data = whole[number % len(whole)]
        damage = DAMAGES[(number // len(whole) + number % len(whole)) % len(DAMAGES)]
        # Not of GIF, TIFF and ICO: what is missing may be no part of the picture that is taken.
        verdict = BAD if damage is cut_off and not name.endswith((".gif", ".tif", ".ico")) else EITHER
        damaged.append(HostileFile(f"{damage.__name__}_{number}_{name}", verdict, damage(data, generator)))
    return crafted + damaged


# ---------------------------------------------------------------- random damage


def flip_bits(data: bytes, generator: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    for _ in range(generator.integers(1, 9)):
        damaged[generator.integers(2, len(damaged))] ^= 1 << generator.integers(0, 8)
    return bytes(damaged)


def flip_bits_of_header(data: bytes, generator: np.random.Generator) -> bytes:
    reach = min(len(data), 96)
    return flip_bits(data[:reach], generator) + data[reach:]


def flip_a_bit(data: bytes, generator: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    damaged[generator.integers(0, len(damaged))] ^= 1 << generator.integers(0, 8)
    return bytes(damaged)


def cut_off(data: bytes, generator: np.random.Generator) -> bytes:
    return data[: generator.integers(1, len(data))]


def zero_tail(data: bytes, generator: np.random.Generator) -> bytes:
    """What an interrupted download leaves where the space had been reserved."""
    kept = int(generator.integers(16, len(data)))
    return data[:kept] + bytes(len(data) - kept)


def lost_block(data: bytes, generator: np.random.Generator) -> bytes:
    start, size = generator.integers(8, len(data)), generator.integers(1, 200)
    return data[:start] + data[start + size :]


def foreign_block(data: bytes, generator: np.random.Generator) -> bytes:
    start = int(generator.integers(8, len(data)))
    return data[:start] + generator.bytes(int(generator.integers(1, 200))) + data[start:]


DAMAGES = (flip_bits, cut_off, flip_bits_of_header, zero_tail, flip_a_bit, lost_block, foreign_block)


# ---------------------------------------------------------------- crafted files


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png(width: int, height: int, rows: bytes, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG with right checksums around `rows` (compressed here) and further chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + body + png_chunk(b"IEND", b"")


def late(data: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with a further chunk between its pixels and its end."""
    return data[:-12] + png_chunk(kind, body) + data[-12:]


def exif_block(entries: list[tuple[int, int, int, int]]) -> bytes:
    """A little-endian TIFF directory of (tag, type, count, value or offset), behind it 64 zeros."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + bytes(64)


def patched(data: bytes, position: int, values: bytes) -> bytes:
    return data[:position] + values + data[position + len(values) :]


def jpeg_size(data: bytes, width: int, height: int) -> bytes:
    start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    return patched(data, start + 5, struct.pack(">HH", height, width))


@functools.cache
def lying_headers() -> list[HostileFile]:
    """Width and height that the picture data do not have."""
    files, whole = [], good_images()
    for label, width, height in (("huge", 65000, 65000), ("zero", 0, 0), ("flat", 48, 0), ("tall", 48, 6000)):
        files += [
            HostileFile(f"{label}_baseline.jpg", EITHER if label == "tall" else BAD,
                        jpeg_size(whole["rgb.jpg"], width, height)),
            HostileFile(f"{label}_progressive.jpg", EITHER if label == "tall" else BAD,
                        jpeg_size(whole["progressive.jpg"], width, height)),
            HostileFile(f"{label}.png", EITHER if label == "tall" else BAD, png(width, height, bytes(8845))),
            HostileFile(f"{label}_interlaced.png", BAD, patched_interlace(png(width, height, bytes(9000)))),
            HostileFile(f"{label}.gif", EITHER, patched(whole["palette.gif"], 6, struct.pack("<HH", width, height))),
            HostileFile(f"{label}.bmp", BAD, patched(whole["rgb.bmp"], 18, struct.pack("<ii", width, height))),
            HostileFile(f"{label}.ppm", BAD, f"P6 {width} {height} 255\n".encode() + noise(61, 48).tobytes()),
            HostileFile(f"{label}.tif", BAD, tiff(width, height, bytes(61 * 48 * 3))),
            HostileFile(f"{label}.webp", BAD,
                        patched(whole["lossy.webp"], 26, struct.pack("<HH", width & 0x3FFF, height & 0x3FFF))),
        ]  # fmt: skip
    return files


def patched_interlace(data: bytes) -> bytes:
    header = patched(data[12:29], 16, b"\x01")
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def tiff(width: int, height: int, strip: bytes, *, strip_size: int | None = None, compression: int = 1,
         extra: list[tuple[int, int, int, int]] | None = None) -> bytes:  # fmt: skip
    """A little-endian RGB TIFF of one strip, whose directory may lie."""
    size = len(strip) if strip_size is None else strip_size
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 2),
               (273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, size)]  # fmt: skip
    entries = sorted(entries + (extra or []))
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(entries)) + body + bytes(4)


@functools.cache
def bombs() -> list[HostileFile]:
    """Small files that ask for much memory or time."""
    pixel_rows = photo().reshape(61, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in pixel_rows)
    text_bomb = zlib.compress(bytes(20_000_000), 1)
    many = [Image.fromarray(noise(4, 4, seed=number)) for number in range(100)]
    screen = encode(Image.new("P", (16, 16)), "GIF", save_all=True, append_images=many[:3])
    counted = [(0x0112, 3, 0x7FFFFFFF, 8), (0x010E, 2, 0x7FFFFFF0, 20), (0x8769, 4, 1, 8), (0x011A, 5, 0xFFFFFFFF, 9)]
    exif = b"Exif\0\0" + exif_block(counted)
    return [
        HostileFile("bomb_zeros.png", BAD, png(60000, 60000, bytes(20_000_000))),
        HostileFile("bomb_wide.png", BAD, png(2_000_000_000, 1, bytes(1000))),
        HostileFile("bomb_sixteen.png", BAD, png(30000, 30000, bytes(10_000_000), depth=16, color=6)),
        HostileFile("bomb_idat.png", EITHER, png(48, 61, rows + bytes(20_000_000))),
        HostileFile("bomb_ztxt.png", BAD, png(48, 61, rows, png_chunk(b"zTXt", b"Comment\0\0" + text_bomb))),
        HostileFile("bomb_itxt.png", BAD,
                    png(48, 61, rows, png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + text_bomb))),
        HostileFile("bomb_late_ztxt.png", BAD, late(png(48, 61, rows), b"zTXt", b"Comment\0\0" + text_bomb)),
        HostileFile("late_header.png", EITHER, late(png(48, 61, rows), b"cHRM", b"12345")),
        HostileFile("late_text.png", GOOD, late(png(48, 61, rows), b"tEXt", b"date\0today")),
        HostileFile("bad_profile.png", GOOD, png(48, 61, rows, png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"no")))),
        HostileFile("bomb_iccp.png", EITHER, png(48, 61, rows, png_chunk(b"iCCP", b"icc\0\0" + text_bomb))),
        HostileFile("bomb_many_texts.png", EITHER,
                    png(48, 61, rows, *[png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(900_000), 1))] * 90)),
        HostileFile("many_chunks.png", EITHER, png(48, 61, rows, *[png_chunk(b"tEXt", b"a\0b")] * 50_000)),
        HostileFile("long_chunk.png", BAD, png(48, 61, rows, struct.pack(">I", 0x7FFFFFFF) + b"tEXt")),
        HostileFile("bomb_frames.gif", GOOD, encode(many[0], "GIF", save_all=True, append_images=many[1:])),
        HostileFile("bomb_screen.gif", BAD, patched(screen, 6, struct.pack("<HH", 13000, 13000))),
        HostileFile("large.gif", GOOD, patched(screen, 6, struct.pack("<HH", 6000, 6000))),
        HostileFile("bomb_dimensions.tif", BAD, tiff(4_000_000_000, 4_000_000_000, bytes(99))),
        HostileFile("bomb_strip.tif", BAD, tiff(9000, 9000, bytes(99), strip_size=0xFFFFFFF0)),
        HostileFile("bomb_lzw.tif", BAD, tiff(13000, 13000, bytes(5000), compression=5)),
        HostileFile("bomb_deflate.tif", BAD, tiff(13000, 13000, zlib.compress(bytes(9_000_000)), compression=8)),
        HostileFile("bomb_tag.tif", EITHER, tiff(8, 8, bytes(192), extra=[(270, 2, 0x7FFFFFF0, 8)])),
        HostileFile("loop.tif", EITHER, patched(tiff(8, 8, bytes(192)), 8 + 192 + 2 + 9 * 12, struct.pack("<I", 200))),
        HostileFile("bomb_exif.jpg", GOOD, encode(photo(), "JPEG", exif=exif)),
        HostileFile("bomb_exif.png", GOOD, encode(photo(), "PNG", exif=exif)),
        HostileFile("bomb_exif.webp", GOOD, encode(photo(), "WEBP", exif=exif)),
        HostileFile("bomb_scans.jpg", BAD, many_scans(2000, 20_000)),
        HostileFile("many_scans.jpg", EITHER, many_scans(300, 80)),
        HostileFile("bomb_markers.jpg", BAD, b"\xff\xd8" + b"\xff" * 30_000_000),
        HostileFile("bomb_segments.jpg", GOOD, b"\xff\xd8" + b"\xff\xfe\0\2" * 100_000 + encode(photo(), "JPEG")[2:]),
        HostileFile("bomb_offset.bmp", BAD, patched(encode(photo(), "BMP"), 10, struct.pack("<I", 0x7FFFFFFF))),
        HostileFile("bomb_rle.bmp", BAD, rle_bomb()),
        HostileFile("bomb_canvas.webp", EITHER,
                    patched(encode(np.dstack([photo(), photo()[..., 0]]), "WEBP"), 24, b"\xff\xff\xff\xff\xff\xff")),
        HostileFile("bomb_number.ppm", BAD, b"P6 " + b"9" * 100_000 + b" 1 255\n\0\0\0"),
        HostileFile("bomb_comment.ppm", EITHER, b"P6\n#" + b"a" * 500_000 + b"\n2 1 255\nabcdef"),
        HostileFile("huge_sparse.jpg", BAD, make=lambda path: sparse(path, encode(photo(), "JPEG")[:-2], 1 << 40)),
        HostileFile("huge_sparse.bin.png", BAD, make=lambda path: sparse(path, b"", 1 << 40)),
    ]  # fmt: skip


def many_scans(side: int, copies: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each costs the decoder a pass over the picture."""
    whole = encode(Image.new("L", (side, side), 77), "JPEG", progressive=True)
    start = whole.rfind(b"\xff\xda")
    return whole[:start] + whole[start:-2] * copies + b"\xff\xd9"


def rle_bomb() -> bytes:
    """A BMP of 12,000 x 12,000 that skips to its last pixel by delta escapes."""
    header = struct.pack("<IiiHHIIiiII", 40, 12000, 12000, 1, 8, 1, 20, 0, 0, 256, 0)
    body = b"\0\2\xff\xff" * 4 + b"\0\1"
    offset = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + bytes(1024) + body


def sparse(path: Path, head: bytes, size: int) -> None:
    path.write_bytes(head)
    os.truncate(path, size)


@functools.cache
def wrong_types() -> list[HostileFile]:
    whole = good_images()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(zipfile.ZipInfo("a.txt"), "text")
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><image href='file:///etc/passwd'/></svg>"
    return [
        HostileFile("empty.jpg", BAD),
        HostileFile("one_byte.png", BAD, b"\x89"),
        HostileFile("only_magic.png", BAD, b"\x89PNG\r\n\x1a\n"),
        HostileFile("only_magic.jpg", BAD, b"\xff\xd8\xff"),
        HostileFile("only_ends.jpg", BAD, b"\xff\xd8\xff\xd9"),
        HostileFile("text.jpg", BAD, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"),
        HostileFile("page.jpg", BAD, b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
        HostileFile("archive.png", BAD, archive.getvalue()),
        HostileFile("vector.png", BAD, svg),
        HostileFile("script.tif", BAD, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"),
        HostileFile("document.tif", BAD, b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\ntrailer\n<<>>\n%%EOF\n"),
        HostileFile("array.bmp", BAD, b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False}"),
        HostileFile("zeros.jpg", BAD, bytes(5000)),
        HostileFile("noise.webp", BAD, noise(50, 50, seed=9).tobytes()),
        HostileFile("floats.tif", BAD, encode(Image.fromarray(photo()[..., 0].astype(np.float32)), "TIFF")),
        HostileFile("integers.tif", BAD, encode(Image.fromarray(photo()[..., 0].astype(np.int32)), "TIFF")),
        HostileFile("a_jpeg.png", GOOD, whole["rgb.jpg"]),
        HostileFile("a_png.jpg", GOOD, whole["rgb.png"]),
        HostileFile("a_webp.jpg", GOOD, whole["lossy.webp"]),
        HostileFile("a_gif.jpg", GOOD, whole["palette.gif"]),
        HostileFile("a_tiff.jpg", GOOD, whole["lzw.tif"]),
        HostileFile("trailer.jpg", GOOD, whole["rgb.jpg"] + bytes(9000)),
    ]


def no_files() -> list[HostileFile]:
    """What is no regular file, as it may take a file's place while a run is going on."""
    return [
        HostileFile("folder.jpg", BAD, make=Path.mkdir),
        HostileFile("pipe.jpg", BAD, make=os.mkfifo),
        HostileFile("device.jpg", BAD, make=lambda path: path.symlink_to("/dev/zero")),
        HostileFile("dangling.jpg", BAD, make=lambda path: path.symlink_to("nowhere.jpg")),
        HostileFile("loop.jpg", BAD, make=lambda path: path.symlink_to(path.name)),
        HostileFile("missing.jpg", BAD, make=lambda path: None),
    ]
