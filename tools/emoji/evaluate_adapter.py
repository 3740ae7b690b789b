#!/usr/bin/env python3
"""Judges an adapter of the bundled base: did it teach its subject, and leave the rest alone?

    evaluate_adapter.py [ADAPTER.safetensors] [--base DIR] [--name octopus] [--scale 1.0] [--grid FILE.png]
                        [--loralei BINARY]

Draws "a NAME on COLOUR" 24 times (each colour twice) and 36 other names, before and after the adapter is loaded, with
the same seeds (DDIM, 25 steps, guidance 4). Prints one JSON line with, for each, the shares of pictures whose
background and name are recognised:

    {"subject": {"before": ..., "after": ...}, "others": {...}, "details": {...}, ...}

Without ADAPTER, only what the base draws. The grid's rows: before, then after; left the subject, right others.
Drawn through diffusers (exit status 1 if it did not take every module of the file) or, with --loralei, by
`loralei generate --adapter ADAPTER=SCALE`.
"""
import argparse
import json
import random
import sys
import time

import torch
from safetensors import safe_open

from drawing import BUNDLED_BASE, NUM_SUBJECT, Loralei, adapter_prompts, adapter_scores, draw, load_pipeline
from measure import Judge
from pictures import Emoji, add_picture_options, save_grid


def num_file_modules(path):
    """How many modules an adapter file holds."""
    with safe_open(path, "pt") as file:
        return len({key.split(".")[0] for key in file.keys()})


def num_injected(pipeline):
    """How many modules of the pipeline carry LoRA factors."""
    models = (pipeline.unet, pipeline.text_encoder)
    return sum(bool(getattr(module, "lora_A", None)) for model in models for module in model.modules())


def draw_by_loralei(options, wanted):
    """before and, with an adapter, after -> pictures."""
    drawn = {"before": Loralei(options.loralei, options.base).draw(wanted)[0]}
    if options.adapter:
        adapter = f"{options.adapter}={options.scale}"
        drawn["after"] = Loralei(options.loralei, options.base, adapter).draw(wanted)[0]
    return drawn


def draw_by_diffusers(options, wanted):
    """As draw_by_loralei; also how many modules the file holds, and how many the pipeline took of them."""
    pipeline, modules, injected = load_pipeline(options.base), None, None
    drawn = {"before": draw(pipeline, wanted)}
    if options.adapter:
        pipeline.load_lora_weights(options.adapter, adapter_name="judged")
        pipeline.set_adapters("judged", options.scale)
        modules, injected = num_file_modules(options.adapter), num_injected(pipeline)
        drawn["after"] = draw(pipeline, wanted)
    return drawn, modules, injected


def main():
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", nargs="?")
    parser.add_argument("--base", default=BUNDLED_BASE, help="pipeline folder (default: the bundled base)")
    parser.add_argument("--name", default="octopus", help="the subject (default octopus)")
    parser.add_argument("--scale", type=float, default=1.0, help="strength of the adapter (default 1)")
    parser.add_argument("--grid", help="where to save the pictures (default adapter-NAME.png)")
    parser.add_argument("--loralei", metavar="BINARY", help="draw by this program instead of diffusers")
    parser.add_argument("--threads", type=int, help="processor threads")
    add_picture_options(parser)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)

    emoji = Emoji.from_options(options)
    if options.name not in emoji.masters:
        parser.error(f"--name: the font has no {options.name!r}; never seen by the base: {', '.join(emoji.held)}")
    judge = Judge(emoji)
    wanted = adapter_prompts(options.name, emoji, random.Random(9))
    started = time.perf_counter()
    modules = injected = None
    if options.loralei:
        drawn = draw_by_loralei(options, wanted)
    else:
        drawn, modules, injected = draw_by_diffusers(options, wanted)
    elapsed_s = time.perf_counter() - started

    scores = {when: adapter_scores(judge, pictures, wanted) for when, pictures in drawn.items()}
    rows = [torch.cat([pictures[start : start + 4] for start in (0, NUM_SUBJECT)]) for pictures in drawn.values()]
    grid = options.grid or f"adapter-{options.name.replace(' ', '-')}.png"
    save_grid(torch.cat(rows), grid)
    print(json.dumps(dict(
        name=options.name, adapter=options.adapter, scale=options.scale, modules=modules, injected=injected,
        subject={when: round(subject.name, 3) for when, (subject, _) in scores.items()},
        others={when: round(others.name, 3) for when, (_, others) in scores.items()},
        details={when: dict(subject=subject.rounded(), others=others.rounded()) for when, (subject, others) in scores.items()},
        grid=grid, elapsed_s=round(elapsed_s, 1),
    )))  # fmt: skip
    if modules != injected:
        print(f"error: diffusers took {injected} of the file's {modules} modules", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
