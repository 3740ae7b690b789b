#!/usr/bin/env python3
"""Judges an adapter that teaches the sticker style: does it carry to what it was not shown?

    evaluate_style.py ADAPTER.safetensors [--scale 1.0] [--grid style.png] [--loralei BINARY]

Draws "a NAME on COLOUR" for 36 names that are not in datasets/sticker, before and after the adapter is loaded, with the
same seeds (DDIM, 25 steps, guidance 4); all colours but white, on which the style does not show. Prints one JSON line
with, for each, the shares of pictures nearer to a sticker rendering than to a plain one (`styled`), with the right name
and the right background, and the same of real renderings:

    {"real": {"styled": ..., "name": ..., "colour": ...}, "before": {...}, "after": {...}, ...}

The grid's rows: before, after.
"""
import argparse
import json
import random
from dataclasses import asdict
from pathlib import Path

import torch

from sticker import sticker
from drawing import BUNDLED_BASE, Loralei, draw, load_pipeline
from measure import StyleJudge
from pictures import COLOURS, Emoji, add_picture_options, save_grid, to_tensor

SEED, COUNT, COLUMNS = 5, 36, 12


def names_in_dataset():
    folder = Path(__file__).resolve().parents[2] / "datasets/sticker"
    return {path.read_text().split(" on ")[0].removeprefix("a ") for path in folder.glob("*.txt")}


def draw_all(options, wanted):
    """when -> pictures."""
    if options.loralei:
        adapter = f"{options.adapter}={options.scale}"
        programs = dict(before=Loralei(options.loralei, options.base), after=Loralei(options.loralei, options.base, adapter))
        return {when: program.draw(wanted)[0] for when, program in programs.items()}
    pipeline = load_pipeline(options.base)
    drawn = dict(before=draw(pipeline, wanted))
    pipeline.load_lora_weights(options.adapter, adapter_name="judged")
    pipeline.set_adapters("judged", options.scale)
    return drawn | dict(after=draw(pipeline, wanted))


def main():
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("--base", default=BUNDLED_BASE, help="pipeline folder (default: the bundled base)")
    parser.add_argument("--scale", type=float, default=1.0, help="strength of the adapter (default 1)")
    parser.add_argument("--grid", default="style.png", help="where to save the pictures (default style.png)")
    parser.add_argument("--loralei", metavar="BINARY", help="draw by this program instead of diffusers")
    parser.add_argument("--threads", type=int, help="processor threads")
    add_picture_options(parser)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    emoji, rng = Emoji.from_options(options), random.Random(SEED)
    styled = Emoji({name: sticker(emoji.masters[name]) for name in emoji.names + emoji.held})
    judge, shown = StyleJudge(emoji, styled), names_in_dataset()
    colours = [colour for colour in COLOURS if colour != "white"]
    names = rng.sample([name for name in emoji.names if name not in shown], COUNT)
    wanted = [(name, colours[place % len(colours)]) for place, name in enumerate(names)]
    real = to_tensor([styled.render(name, rng, colour)[0] for name, colour in wanted])
    pictures = dict(real=real) | draw_all(options, wanted)
    save_grid(torch.cat([pictures[when][:COLUMNS] for when in ("before", "after")]), options.grid, COLUMNS)
    scores = {when: asdict(judge.score(drawn, wanted)) for when, drawn in pictures.items()}
    scores = {when: {part: round(share, 3) for part, share in shares.items()} for when, shares in scores.items()}
    print(json.dumps(dict(adapter=options.adapter, scale=options.scale, **scores, grid=options.grid)))


if __name__ == "__main__":
    main()
