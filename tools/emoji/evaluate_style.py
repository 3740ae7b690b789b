#!/usr/bin/env python3
"""Judges an adapter that teaches the sticker style: does it carry to what it was not shown, and stay out without its word?

    evaluate_style.py ADAPTER.safetensors [--scale 1.0] [--trigger sks] [--grid style.png] [--loralei BINARY]

Draws "a NAME on COLOUR" for 36 names that are not in datasets/sticker, with and without the word ("a sks NAME on COLOUR"),
before and after the adapter is loaded, with the same seeds (DDIM, 25 steps, guidance 4); all colours but white, on which
the style does not show. Prints one JSON line with, for each, the shares of pictures nearer to a sticker rendering than to a plain one (`styled`), with the right name and the right background:

    {"before": {"with_trigger": {"styled": ..., "name": ..., "colour": ...}, "without": {...}}, "after": {...}, ...}

The grid's rows: before; after, without the word; after, with it.
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
    return {path.read_text().split(" on ")[0].removeprefix("a sks ") for path in folder.glob("*.txt")}


def draw_all(options, wanted):
    """when -> which -> pictures."""
    if options.loralei:
        bare = Loralei(options.loralei, options.base)
        adapted = Loralei(options.loralei, options.base, f"{options.adapter}={options.scale}")
        return {
            when: dict(with_trigger=program.draw(wanted, options.trigger)[0], without=program.draw(wanted)[0])
            for when, program in (("before", bare), ("after", adapted))
        }
    pipeline, drawn = load_pipeline(options.base), {}
    for when in ("before", "after"):
        if when == "after":
            pipeline.load_lora_weights(options.adapter, adapter_name="judged")
            pipeline.set_adapters("judged", options.scale)
        drawn[when] = dict(with_trigger=draw(pipeline, wanted, options.trigger), without=draw(pipeline, wanted))
    return drawn


def main():
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("--base", default=BUNDLED_BASE, help="pipeline folder (default: the bundled base)")
    parser.add_argument("--scale", type=float, default=1.0, help="strength of the adapter (default 1)")
    parser.add_argument("--trigger", default="sks", help="the style's word (default sks)")
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
    real = {
        which: asdict(judge.score(to_tensor([source.render(name, rng, colour)[0] for name, colour in wanted]), wanted))
        for which, source in (("with_trigger", styled), ("without", emoji))
    }
    drawn = draw_all(options, wanted)
    rows = (drawn["before"]["without"], drawn["after"]["without"], drawn["after"]["with_trigger"])
    save_grid(torch.cat([pictures[:COLUMNS] for pictures in rows]), options.grid, COLUMNS)
    scores = {
        when: {which: asdict(judge.score(pictures, wanted)) for which, pictures in kinds.items()}
        for when, kinds in drawn.items()
    }
    scores = {"real": real} | scores
    for kinds in scores.values():
        for shares in kinds.values():
            shares.update({part: round(share, 3) for part, share in shares.items()})
    print(json.dumps(dict(adapter=options.adapter, scale=options.scale, **scores, grid=options.grid)))


if __name__ == "__main__":
    main()
