"""Drawing with a finished base, through diffusers or by `loralei generate`, always with the same seeds; and the prompts
that adapters are judged by.
"""
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from pictures import COLOURS, SIZE_PX, to_tensor

BUNDLED_BASE = Path(__file__).resolve().parents[2] / "crates/emoji/base"
STEPS, GUIDANCE, BATCH = 25, 4.0, 20
NUM_SUBJECT, NUM_OTHERS = 24, 36


def load_pipeline(base):
    """The pipeline in f32, without a progress bar."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt(name, colour):
    """What to ask for; without a colour the model picks the background."""
    return f"a {name} on {colour}" if colour else f"a {name}"


def draw(pipeline, wanted):
    """wanted [(name, colour)] -> (n, 3, SIZE_PX, SIZE_PX) in [-1, 1], the seeds given by the places."""
    drawn = []
    for start in range(0, len(wanted), BATCH):
        prompts = [prompt(*pair) for pair in wanted[start : start + BATCH]]
        pictures = pipeline(
            prompts, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=SIZE_PX, width=SIZE_PX,
            generator=torch.Generator().manual_seed(start), output_type="pt",
        ).images  # fmt: skip
        drawn.append(pictures * 2 - 1)
    return torch.cat(drawn)


def draw_singly(pipeline, wanted):
    """As draw, one picture at a time; also the seconds a picture, the median, without text encoding and without the first."""
    drawn, times_s = [], []
    for place, pair in [(0, wanted[0]), *enumerate(wanted)]:
        text, negative = pipeline.encode_prompt(prompt(*pair), pipeline.device, 1, True)
        started = time.perf_counter()
        pictures = pipeline(
            prompt_embeds=text, negative_prompt_embeds=negative, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            height=SIZE_PX, width=SIZE_PX, generator=torch.Generator().manual_seed(place), output_type="pt",
        ).images  # fmt: skip
        times_s.append(time.perf_counter() - started)
        drawn.append(pictures * 2 - 1)
    return torch.cat(drawn[1:]), float(np.median(times_s[1:]))


@dataclass
class Loralei:
    """The program: `loralei generate`, with an adapter as FILE=SCALE or none."""

    binary: str
    base: str | Path = BUNDLED_BASE
    adapter: str | None = None

    def command(self, prompts, output):
        base = "emoji" if Path(self.base) == BUNDLED_BASE else str(self.base)
        whole = [self.binary, "generate", "--base", base, *(part for text in prompts for part in ("--prompt", text))]
        whole += ["--seed", "0", "--steps", str(STEPS), "--guidance", str(GUIDANCE), "--size", f"{SIZE_PX}x{SIZE_PX}"]
        whole += ["--sampler", "ddim", "--batch", "1", "--json", "--output", str(output)]
        return whole + (["--adapter", self.adapter] if self.adapter else [])

    def draw(self, wanted):
        """wanted [(name, colour)] -> (n, 3, SIZE_PX, SIZE_PX) in [-1, 1], and the seconds a picture.

        One picture at a time; the seconds are the median of what the program reports, without loading.
        """
        with tempfile.TemporaryDirectory() as folder:
            command = self.command([prompt(*pair) for pair in wanted], Path(folder) / "drawn.png")
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"error: {self.binary} generate ended with exit status {done.returncode}")
            report = json.loads(done.stdout)
            pictures = [np.asarray(Image.open(made["path"]).convert("RGB"), np.float32) for made in report["pictures"]]
        return to_tensor(pictures) / 127.5 - 1, float(np.median(report["picture_s"]))


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
