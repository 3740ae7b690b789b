#!/usr/bin/env python3
"""How much of the training pictures' background did an adapter learn along with its subject?

    background_share.py [NAME=ADAPTER.safetensors ...] [--base DIR] [--grid stripes.png] [--loralei BINARY]

For adapters trained on the folder of `striped.py`. Draws, with the same seeds by the base and by each adapter (DDIM, 25
steps, guidance 4), 24 pictures each of "a octopus", "a octopus on COLOUR", "a NAME" and "a NAME on COLOUR", and measures
the stripes in the top and bottom rows of each picture, where the subject hardly comes: their amplitude over that of whole
stripes. 1 is the training background, 0 a plain one. Prints one JSON line:

    {"real": {"striped": ..., "plain": ...},
     "base": {"subject": {"share": ..., "striped": ..., "name": ..., "colour": ...}, "subject_on_colour": {...},
              "others": {...}, "others_on_colour": {...}}, "NAME": {...}, ...}

`real` is the measure of training pictures and of the same on plain colours. `share` is the mean, `striped` the share of
pictures above 0.3, `name` and `colour` the shares recognised as `evaluate_adapter.py` does it: it takes the
background for plain, so that neither counts for much where `striped` does. The grid has three rows for each: the subject,
the subject on colours, others on colours.
"""
import argparse
import json
import random
from pathlib import Path

import torch

from drawing import BUNDLED_BASE, Loralei, draw, load_pipeline
from measure import Judge, nearest_colour
from pictures import COLOURS, Emoji, add_picture_options, save_grid, to_tensor
from striped import DARK, LIGHT, NAME, STRIPE_PX, over, placed_octopuses, stripes

SEED, COUNT, COLUMNS = 7, 24, 12
ROWS_PX = 4  # height of the strips at the top and the bottom that are looked at
WINDOW_PX = 2 * 2 * STRIPE_PX  # two periods
PERIODS_PX = range(2 * STRIPE_PX - 3, 2 * STRIPE_PX + 4)
STRIPED = 0.3  # amplitude from which a picture counts as striped: plain ones stay below 0.1


def stripe_share(pictures):
    """pictures (n, 3, h, w) in [-1, 1] -> (n): amplitude of the stripes above and below the subject, 1 in the training pictures.

    In windows of the top and bottom rows: the slope of a line through (pattern, brightness), the greatest over all phases
    and over PERIODS_PX, then the mean over windows. Drawn stripes wander, so each window has a phase of its own.
    """
    bright = ((pictures.float().clamp(-1, 1) + 1) * 127.5).mean(1)  # (n, h, w)
    bright = torch.stack([bright[:, :ROWS_PX], bright[:, -ROWS_PX:]], 1).mean(2)  # (n, 2, w): columns of the strips
    bright = bright.unfold(2, WINDOW_PX, WINDOW_PX // 2)  # (n, 2, windows, WINDOW_PX)
    bright = bright - bright.mean(-1, keepdim=True)
    patterns = torch.stack([pattern(period, phase) for period in PERIODS_PX for phase in range(period)])
    patterns = patterns - patterns.mean(1, keepdim=True)  # (patterns, WINDOW_PX)
    return (bright @ patterns.T / (patterns**2).sum(1)).max(-1).values.mean((1, 2))


def pattern(period_px, phase_px):
    """Stripes of a period, in as wide a window as they are looked for: (WINDOW_PX)."""
    is_light = (torch.arange(WINDOW_PX) + phase_px) % period_px * 2 >= period_px
    return torch.where(is_light, float(LIGHT), float(DARK))


def real_shares():
    """The measure of the training pictures, and of the same octopuses on the first plain colours."""
    octopuses = placed_octopuses()
    grounds = {"striped": [stripes()] * len(octopuses), "plain": list(COLOURS.values())}
    pictures = {
        kind: to_tensor([over(*octopus, ground).astype("float32") / 127.5 - 1 for octopus, ground in zip(octopuses, of_kind)])
        for kind, of_kind in grounds.items()
    }
    return {kind: round(stripe_share(made).mean().item(), 3) for kind, made in pictures.items()}


def kinds(emoji, rng):
    """kind -> [(name, colour or None)], COUNT each."""
    colours = [list(COLOURS)[i % len(COLOURS)] for i in range(COUNT)]
    names = rng.sample(emoji.names, COUNT)
    return {
        "subject": [(NAME, None)] * COUNT, "subject_on_colour": [(NAME, colour) for colour in colours],
        "others": [(name, None) for name in names], "others_on_colour": list(zip(names, colours)),
    }  # fmt: skip


def draw_all(options, wanted):
    """who -> pictures, for the base and every adapter."""
    adapters = dict(adapter.split("=", 1) for adapter in options.adapters)
    if options.loralei:
        programs = {"base": None} | adapters
        return {who: Loralei(options.loralei, options.base, path).draw(wanted)[0] for who, path in programs.items()}
    pipeline = load_pipeline(options.base)
    drawn = {"base": draw(pipeline, wanted)}
    for who, path in adapters.items():
        pipeline.load_lora_weights(path, adapter_name="judged")
        drawn[who] = draw(pipeline, wanted)
        pipeline.delete_adapters("judged")
    return drawn


def scores(judge, pictures, wanted):
    """The figures of one kind of prompt; no `colour` where none was asked for."""
    shares = stripe_share(pictures)
    found = dict(share=shares.mean().item(), striped=(shares > STRIPED).float().mean().item())
    found["name"] = judge.score(pictures, wanted).name
    if wanted[0][1]:
        pixels = (pictures.float().clamp(-1, 1) + 1) * 127.5
        found["colour"] = sum(nearest_colour(p) == colour for p, (_, colour) in zip(pixels, wanted)) / len(wanted)
    return {part: round(value, 3) for part, value in found.items()}


def main():
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="*", metavar="NAME=FILE")
    parser.add_argument("--base", default=BUNDLED_BASE, help="pipeline folder (default: the bundled base)")
    parser.add_argument("--grid", default="stripes.png", help="where to save the pictures (default stripes.png)")
    parser.add_argument("--loralei", metavar="BINARY", help="draw by this program instead of diffusers")
    parser.add_argument("--threads", type=int, help="processor threads")
    add_picture_options(parser)
    options = parser.parse_args()
    for adapter in options.adapters:
        if not Path(adapter.partition("=")[2]).is_file():
            parser.error(f"{adapter}: write NAME=FILE with a file that exists")
    if options.threads:
        torch.set_num_threads(options.threads)

    emoji = Emoji.from_options(options)
    judge, asked = Judge(emoji), kinds(emoji, random.Random(SEED))
    drawn = draw_all(options, [pair for pairs in asked.values() for pair in pairs])
    report, rows = {"real": real_shares()}, []
    for who, pictures in drawn.items():
        parts = dict(zip(asked, pictures.split(COUNT)))
        report[who] = {kind: scores(judge, parts[kind], wanted) for kind, wanted in asked.items()}
        rows += [parts[kind][:COLUMNS] for kind in ("subject", "subject_on_colour", "others_on_colour")]
    save_grid(torch.cat(rows), options.grid, COLUMNS)
    print(json.dumps(dict(**report, grid=options.grid)))


if __name__ == "__main__":
    main()
