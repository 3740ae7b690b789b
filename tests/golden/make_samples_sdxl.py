#!/usr/bin/env python3
"""Makes what diffusers draws with the golden SDXL bases: latents after sampling.

    python make_samples_sdxl.py [--out DIR] [--only sdxl|sdxl-v]

Reads DIR/{sdxl,sdxl-v}/base and adapter.safetensors, which make_golden_sdxl.py wrote, and adds samples.safetensors and
samples.json beside them. Every number comes out of StableDiffusionXLPipeline as it is, from texts to latents; README.md
says what each tensor is.

Axes: s steps, n pictures, c channels, h w height and width, l tokens (77), d features.
"""
import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from make_golden import write_json
from make_golden_sdxl import read_base
from make_samples import (
    ADAPTER_SCALES, GUIDANCE, NEGATIVE_PROMPT, OTHER_STEPS, PROMPTS, SAMPLERS, STEPS, GivenNoise,
)

SIZES = {"sdxl": (8, 12), "sdxl-v": (12, 8)}  # of the latents: h, w
SEEDS = {"sdxl": 204, "sdxl-v": 205}
# What is told instead of the picture's own size and no crop: h before w, top before left.
TOLD_SIZES = dict(original_size=(3001, 1500), crops_coords_top_left=(129, 5))
VARIANTS = {
    "": dict(negative=NEGATIVE_PROMPT), ".empty": dict(negative=""), ".absent": dict(negative=None),
    ".sizes": dict(negative=NEGATIVE_PROMPT, **TOLD_SIZES),
}


class Drawing:
    """One base, and the noise that every sampler starts from."""

    def __init__(self, base, name):
        self.pipeline = read_base(base)
        self.pipeline.set_progress_bar_config(disable=True)
        self.config = self.pipeline.scheduler.config
        torch.manual_seed(SEEDS[name])
        shape = (len(PROMPTS), 4, *SIZES[name])
        self.latents, self.noise = torch.randn(shape), torch.randn(STEPS, *shape)

    def embeddings(self, suffix="", **settings):
        """The prompts as the pipeline encodes them: contexts (n, l, d) and pooled texts (n, p)."""
        text, negative, pooled, negative_pooled = self.pipeline.encode_prompt(
            PROMPTS, device="cpu", negative_prompt=[NEGATIVE_PROMPT] * len(PROMPTS), **settings
        )
        return {
            f"text{suffix}": text, f"pooled{suffix}": pooled,
            f"negative_text{suffix}": negative[:1], f"negative_pooled{suffix}": negative_pooled[:1],
        }

    def sample(self, sampler, steps=STEPS, negative=NEGATIVE_PROMPT, **sizes):
        """The last latents (n, c, h, w)."""
        self.pipeline.scheduler = SAMPLERS[sampler].from_config(self.config)
        side = self.pipeline.vae_scale_factor
        with GivenNoise(self.noise):
            latents = self.pipeline(
                prompt=PROMPTS, negative_prompt=None if negative is None else [negative] * len(PROMPTS),
                latents=self.latents.clone(), num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="latent",
                height=self.latents.shape[2] * side, width=self.latents.shape[3] * side, **sizes,
            ).images
        if not latents.isfinite().all():
            raise SystemExit(f"{sampler}, {steps} steps, {negative!r}: not finite")
        return latents

    def without_adapter(self):
        made = self.embeddings() | self.embeddings(".clip_skip2", clip_skip=1)
        del made["negative_text.clip_skip2"], made["negative_pooled.clip_skip2"]  # the pipeline skips for the prompt alone
        made |= {f"final.{sampler}": self.sample(sampler) for sampler in SAMPLERS}
        made |= {f"final7.{sampler}": self.sample(sampler, OTHER_STEPS) for sampler in ("euler", "ddim")}
        for variant, settings in VARIANTS.items():
            if variant:
                made |= {f"final.{sampler}{variant}": self.sample(sampler, **settings) for sampler in ("euler", "ddim")}
        return made

    def with_adapter(self, path):
        """The adapter at each of ADAPTER_SCALES, in the U-Net and in both text encoders."""
        made = {}
        self.pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="golden")
        for name, scale in ADAPTER_SCALES.items():
            self.pipeline.set_adapters("golden", scale)
            made |= self.embeddings(f".{name}")
            made |= {f"final.{sampler}.{name}": self.sample(sampler) for sampler in ("euler", "ddim")}
        return made


def make_samples(folder):
    """Writes samples.safetensors and samples.json of one case."""
    drawing = Drawing(folder / "base", folder.name)
    with torch.no_grad():
        made = dict(latents=drawing.latents, noise=drawing.noise) | drawing.without_adapter()
        made |= drawing.with_adapter(folder / "adapter.safetensors")
    save_file({key: value.detach().contiguous() for key, value in made.items()}, folder / "samples.safetensors")
    write_json(folder / "samples.json", dict(
        kind=folder.name, seed=SEEDS[folder.name], prompts=PROMPTS, negative_prompt=NEGATIVE_PROMPT, steps=STEPS,
        guidance=GUIDANCE, latent_size=SIZES[folder.name], prediction_type=drawing.config.prediction_type,
        adapter_scales=ADAPTER_SCALES, told_sizes=TOLD_SIZES,
    ))
    plain = made["final.euler"]
    moved = {key: f"{((value - plain).norm() / plain.norm()).item():.2f}" for key, value in made.items() if "final.euler" in key}
    print(f"{folder.name}: {len(made)} tensors; how far from the plain picture {moved}")


def main():
    parser = argparse.ArgumentParser(description="Makes what diffusers draws with the golden SDXL bases.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that holds sdxl and sdxl-v")
    parser.add_argument("--only", choices=list(SEEDS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    torch.use_deterministic_algorithms(True)
    for name in SIZES:
        if options.only in (None, name):
            make_samples(options.out / name)


if __name__ == "__main__":
    main()
