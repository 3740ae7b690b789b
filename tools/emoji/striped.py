#!/usr/bin/env python3
"""A training folder in which every picture has the same loud background, and masks that say where the subject is.

    striped.py FOLDER [--colours] [--without-masks]

The octopuses of datasets/octopus, at the same sizes, places and flips, on black and white stripes instead of colours. The
captions ("a octopus") do not speak of the stripes, so an adapter that learns them has learned what it was not asked for:
`background_share.py` measures how much. With --colours they are those of datasets/octopus ("a octopus on COLOUR"), which is
not true: what is then drawn on COLOUR is either the base's colour or the stripes. STEM-masklabel.png is white on the subject, from the emoji's opacity.
"""
import argparse
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "datasets"))
from octopus import (  # noqa: E402
    CODE_POINT, COLOURS, NAME, NUM_BASE_NAMES, NUM_TEST_NAMES, SEED, SIZE_PX, emoji_master, over, placed,
)  # fmt: skip

STRIPE_PX = 8  # width of one stripe: two latents of the bundled base
DARK, LIGHT = 20, 250  # the base's black and white


def stripes(phase_px=0):
    """Vertical stripes (SIZE_PX, SIZE_PX, 3) f32 in [0, 255]; there are 2 STRIPE_PX phases."""
    is_light = (np.arange(SIZE_PX) + phase_px) // STRIPE_PX % 2
    row = np.where(is_light, LIGHT, DARK).astype(np.float32)
    return np.tile(row[None, :, None], (SIZE_PX, 1, 3))


def placed_octopuses():
    """What `placed` of octopus.py gives, for each picture of datasets/octopus."""
    rng = random.Random(SEED)
    rng.sample(range(NUM_BASE_NAMES), NUM_TEST_NAMES)  # as octopus.py does, for the same places
    master = emoji_master(CODE_POINT)
    return [placed(master, rng) for _ in COLOURS]


def main():
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--colours", action="store_true", help="captions that name a plain colour")
    parser.add_argument("--without-masks", action="store_true", help="pictures and captions only")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for number, (colour, (colours, opacity)) in enumerate(zip(COLOURS, placed_octopuses()), 1):
        stem = options.folder / f"{number:02}-{NAME}"
        Image.fromarray(over(colours, opacity, stripes())).save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(f"a {NAME}{f' on {colour}' if options.colours else ''}\n", encoding="utf-8")
        if not options.without_masks:
            mask = np.rint(opacity[..., 0] * 255).astype(np.uint8)
            Image.fromarray(mask).save(stem.with_name(f"{stem.name}-masklabel.png"), optimize=True)
    print(f"{len(COLOURS)} pictures and captions{'' if options.without_masks else ' with masks'} in {options.folder}")


if __name__ == "__main__":
    main()
