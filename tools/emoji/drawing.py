"""Drawing with a finished base through diffusers, always with the same seeds, and the prompts that adapters are judged by."""
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from pictures import COLOURS, SIZE_PX

BUNDLED_BASE = Path(__file__).resolve().parents[2] / "crates/emoji/base"
STEPS, GUIDANCE, BATCH = 25, 4.0, 20
NUM_SUBJECT, NUM_OTHERS = 24, 36


def load_pipeline(base):
    """The pipeline in f32, without a progress bar."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, wanted):
    """wanted [(name, colour)] -> (n, 3, SIZE_PX, SIZE_PX) in [-1, 1]: "a NAME on COLOUR", the seed given by the place."""
    drawn = []
    for start in range(0, len(wanted), BATCH):
        prompts = [f"a {name} on {colour}" for name, colour in wanted[start : start + BATCH]]
        pictures = pipeline(
            prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=SIZE_PX, width=SIZE_PX,
            generator=torch.Generator().manual_seed(start), output_type="pt",
        ).images  # fmt: skip
        drawn.append(pictures * 2 - 1)
    return torch.cat(drawn)


def adapter_prompts(subject, emoji, rng):
    """What adapters are judged by: the subject twice on each colour, then 36 other names, drawn from rng."""
    colours = list(COLOURS)
    others = [(name, colours[i % len(colours)]) for i, name in enumerate(rng.sample(emoji.names, NUM_OTHERS))]
    return [(subject, colour) for colour in colours * 2] + others


def adapter_scores(judge, pictures, wanted):
    """The Scores of the subject and of the others."""
    return (
        judge.score(pictures[:NUM_SUBJECT], wanted[:NUM_SUBJECT]),
        judge.score(pictures[NUM_SUBJECT:], wanted[NUM_SUBJECT:]),
    )
