"""The sticker style: any emoji with a white border, as cut out of paper.

A styled emoji is a square like the emoji itself (pictures.py), so it is placed, judged and captioned in the same way.
"""
import numpy as np
from PIL import Image, ImageFilter

from pictures import MASTER_PX

INSET_PX = 106  # the emoji is made this small within its square, so that the border fits
SOLID = 96  # opacity in [0, 255] from which a pixel belongs to the emoji
WIDENINGS_PX = (5, 5, 7)  # windows of the largest opacity, one after the other: together a border of 7 px
BLUR_PX = 1.2


def sticker(master):
    """(MASTER_PX, MASTER_PX, 4) uint8 -> the same as a sticker."""
    square, left = Image.new("RGBA", (MASTER_PX, MASTER_PX)), (MASTER_PX - INSET_PX) // 2
    square.paste(Image.fromarray(master).resize((INSET_PX, INSET_PX), Image.LANCZOS), (left, left))
    glyph = np.asarray(square).astype(np.float32)
    paper = Image.fromarray((glyph[..., 3] > SOLID).astype(np.uint8) * 255)
    for window_px in WIDENINGS_PX:
        paper = paper.filter(ImageFilter.MaxFilter(window_px))
    paper = np.asarray(paper.filter(ImageFilter.GaussianBlur(BLUR_PX))).astype(np.float32)
    opacity = glyph[..., 3:] / 255
    colours = glyph[..., :3] * opacity + 255 * (1 - opacity)
    return np.concatenate([colours, np.maximum(paper[..., None], glyph[..., 3:])], -1).round().astype(np.uint8)
