#!/usr/bin/env python3
"""Draws datasets/sticker: ten things that the bundled base knows, as stickers, each with a caption.

    sticker.py [FOLDER=datasets/sticker]

The captions are ordinary ones, "a NAME on COLOUR": with no word of its own the style goes into everything that the
adapter draws, and its scale says how much of it.
"""
import os
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "emoji"))
from sticker import sticker  # noqa: E402
from pictures import COLOURS, FONT, Emoji, load_masters  # noqa: E402

# Different outlines and insides, so that only the style is common; no two on the same colour, two colours left out (on white
# the border does not show).
NAMES = [
    "dog face", "automobile", "sunflower", "red apple", "owl", "sailboat", "mushroom", "crown", "penguin", "umbrella",
]  # fmt: skip
LEFT_OUT = ("white", "teal")
SEED = 21


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent.parent / "datasets/sticker"
    folder.mkdir(parents=True, exist_ok=True)
    masters = load_masters(FONT, os.environ.get("LORALEI_EMOJI_CACHE"))
    drawn, rng = Emoji({name: sticker(masters[name]) for name in NAMES}), random.Random(SEED)
    colours = [colour for colour in COLOURS if colour not in LEFT_OUT]
    for number, (name, colour) in enumerate(zip(NAMES, colours), 1):
        picture, _ = drawn.render(name, rng, colour)
        stem = folder / f"{number:02}-{name.replace(' ', '-')}"
        Image.fromarray(np.rint((picture + 1) * 127.5).astype(np.uint8)).save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(f"a {name} on {colour}\n", encoding="utf-8")
    print(f"{len(NAMES)} pictures and captions in {folder}")


if __name__ == "__main__":
    main()
