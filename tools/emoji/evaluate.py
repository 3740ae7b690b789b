#!/usr/bin/env python3
"""How good is a base? Scores real renderings, the same through the autoencoder, and pictures drawn from prompts.

    evaluate.py [--base DIR] [--count 100] [--grid evaluation.png] [--loralei BINARY [--peer]]

The first line is the judge's own ceiling, the second the autoencoder's, the third the whole model, drawn through
diffusers or, with --loralei, by `loralei generate`. --peer draws by both, one picture at a time, and prints the seconds a
picture of each (the median, without loading and text encoding); both use all processors unless RAYON_NUM_THREADS and OMP_NUM_THREADS say
less.
"""
import argparse
import random
import time

import torch

from drawing import BUNDLED_BASE, Loralei, draw, draw_singly, load_pipeline
from measure import Judge
from pictures import COLOURS, Emoji, add_picture_options, save_grid


def main():
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BUNDLED_BASE, help="pipeline folder (default: the bundled base)")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--grid", default="evaluation.png")
    parser.add_argument("--loralei", metavar="BINARY", help="draw by this program instead of diffusers")
    parser.add_argument("--peer", action="store_true", help="with --loralei: draw through diffusers as well")
    add_picture_options(parser)
    options = parser.parse_args()
    if options.peer and not options.loralei:
        parser.error("--peer needs --loralei")
    emoji = Emoji.from_options(options)
    judge, pipeline, rng = Judge(emoji), load_pipeline(options.base), random.Random(77)

    pictures, wanted = emoji.batch(options.count, rng, emoji.names)
    print(f"real renderings          {judge.score(pictures, wanted)}", flush=True)
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.encode(pictures).latent_dist.mean).sample
    print(f"through the autoencoder  {judge.score(decoded, wanted)}", flush=True)

    wanted = [(rng.choice(emoji.names), rng.choice(list(COLOURS))) for _ in range(options.count)]
    drawn = {}
    if options.loralei:
        drawn["loralei"] = Loralei(options.loralei, options.base).draw(wanted)
    if options.peer:
        drawn["diffusers"] = draw_singly(pipeline, wanted)
    if not drawn:
        started = time.perf_counter()
        pictures = draw(pipeline, wanted)
        drawn["diffusers"] = pictures, (time.perf_counter() - started) / options.count
    for program, (pictures, picture_s) in drawn.items():
        print(f"{f'drawn by {program}':24} {judge.score(pictures, wanted)}, {picture_s:.3f} s a picture")
    save_grid(torch.cat([pictures[:40] for pictures, _ in drawn.values()]), options.grid)


if __name__ == "__main__":
    main()
