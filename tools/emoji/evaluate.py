#!/usr/bin/env python3
"""How good is a base? Scores real renderings, the same through the autoencoder, and pictures drawn from prompts.

    evaluate.py [--base DIR] [--count 100] [--grid evaluation.png]

The first line is the judge's own ceiling, the second the autoencoder's, the third the whole model.
"""
import argparse
import random
import time

import torch

from drawing import BUNDLED_BASE, draw, load_pipeline
from measure import Judge
from pictures import COLOURS, Emoji, add_picture_options, save_grid


def main():
    parser = argparse.ArgumentParser(description="How good is a base?")
    parser.add_argument("--base", default=BUNDLED_BASE, help="pipeline folder (default: the bundled base)")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--grid", default="evaluation.png")
    add_picture_options(parser)
    options = parser.parse_args()
    emoji = Emoji.from_options(options)
    judge, pipeline, rng = Judge(emoji), load_pipeline(options.base), random.Random(77)

    pictures, wanted = emoji.batch(options.count, rng, emoji.names)
    print(f"real renderings          {judge.score(pictures, wanted)}", flush=True)
    with torch.no_grad():
        decoded = pipeline.vae.decode(pipeline.vae.encode(pictures).latent_dist.mean).sample
    print(f"through the autoencoder  {judge.score(decoded, wanted)}", flush=True)

    wanted = [(rng.choice(emoji.names), rng.choice(list(COLOURS))) for _ in range(options.count)]
    started = time.perf_counter()
    drawn = draw(pipeline, wanted)
    elapsed_s = time.perf_counter() - started
    print(f"drawn                    {judge.score(drawn, wanted)}, {elapsed_s / options.count:.2f} s a picture")
    save_grid(drawn[:40], options.grid)


if __name__ == "__main__":
    main()
