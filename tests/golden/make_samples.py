#!/usr/bin/env python3
"""Makes what diffusers draws with the golden bases: latents after sampling, with every sampler that `generate` has.

    python make_samples.py [--out DIR] [--only sd1|sd2|samplers]

Reads DIR/{sd1,sd2}/base and adapter.safetensors, which make_golden.py wrote, and adds samples.safetensors and
samples.json beside them; and DIR/samplers.json, the samplers alone on a formula instead of a network. README.md says
what each holds. Every number comes out of StableDiffusionPipeline or the scheduler classes as they are; the one
intervention is that the ancestral sampler takes its noise from a list, so that others can be given the same.

Axes: s steps, n pictures, c channels, h w height and width, l tokens (77), d features.
"""
import argparse
import json
import math
from pathlib import Path

import torch
from diffusers import (
    DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
    StableDiffusionPipeline, UniPCMultistepScheduler,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from make_golden import token_ids, write_json

SAMPLERS = {
    "ddim": DDIMScheduler, "euler-a": EulerAncestralDiscreteScheduler, "dpmpp-2m": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler, "euler": EulerDiscreteScheduler,
}
STEPS, OTHER_STEPS, GUIDANCE = 10, 7, 5.0
PROMPTS = ["photo of the sks dog", "sks on the hot sand"]
NEGATIVE_PROMPT = "a dog of photo"
SIZES = {"sd1": (8, 12), "sd2": (12, 8)}  # of the latents: h, w
SEEDS = {"sd1": 201, "sd2": 202, "samplers": 203}
ADAPTER_SCALES = {"adapter1": 1.0, "adapter-0.5": -0.5}
# scheduler_config.json as published with Stable Diffusion 1.5 (whose class is PNDM) and 2.1 (DDIM), keys that no
# sampler here knows left out; the third is 2.1's with zero terminal SNR and the spacing that this asks for. Then SDXL's
# spacing, the third one, and zero terminal SNR with each spacing and with the prediction that does not fit it.
PUBLISHED = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1,
    clip_sample=False, set_alpha_to_one=False,
)
ZERO_SNR = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
SCHEDULES = {
    "sd15": PUBLISHED,
    "sd21-v": PUBLISHED | dict(prediction_type="v_prediction"),
    "zero-snr-v": PUBLISHED | dict(ZERO_SNR, prediction_type="v_prediction"),
    "leading": PUBLISHED | dict(timestep_spacing="leading"),
    "trailing": PUBLISHED | dict(timestep_spacing="trailing"),
    "zero-snr-v-leading": PUBLISHED | dict(ZERO_SNR, prediction_type="v_prediction", timestep_spacing="leading"),
    "zero-snr-v-linspace": PUBLISHED | dict(ZERO_SNR, prediction_type="v_prediction", timestep_spacing="linspace"),
    "zero-snr-epsilon": PUBLISHED | ZERO_SNR,
}
FORMULA = "f(x, t) = 0.8 tanh(x) (1 + 0.25 cos(t / 100)) + 0.1 sin(t / 50)"


def formula(xs, timestep):
    """FORMULA, element by element: stands for the network."""
    return 0.8 * torch.tanh(xs) * (1 + 0.25 * math.cos(timestep / 100)) + 0.1 * math.sin(timestep / 50)


class GivenNoise:
    """Takes the place of the ancestral sampler's random numbers: step i gets noise[i] of (s, n, c, h, w)."""

    def __init__(self, noise):
        self.noise = noise

    def __enter__(self):
        left = iter(self.noise)
        self.before = scheduling_euler_ancestral_discrete.randn_tensor
        scheduling_euler_ancestral_discrete.randn_tensor = lambda *args, **kwargs: next(left)

    def __exit__(self, *error):
        scheduling_euler_ancestral_discrete.randn_tensor = self.before


class Drawing:
    """One base, its prompts as embeddings, and the noise that every sampler starts from."""

    def __init__(self, base, name):
        self.pipeline = StableDiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32, safety_checker=None)
        self.pipeline.tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
        self.pipeline.set_progress_bar_config(disable=True)
        for model in (self.pipeline.unet, self.pipeline.text_encoder, self.pipeline.vae):
            model.eval()
        self.config = self.pipeline.scheduler.config
        torch.manual_seed(SEEDS[name])
        shape = (len(PROMPTS), 4, *SIZES[name])
        self.latents, self.noise = torch.randn(shape), torch.randn(STEPS, *shape)
        self.text, self.negative = self.embeddings()

    def embeddings(self, clip_skip=None):
        """Text embeddings (n, l, d) of PROMPTS and (1, l, d) of NEGATIVE_PROMPT."""
        return tuple(
            self.pipeline.encode_prompt(prompts, "cpu", 1, False, clip_skip=clip_skip)[0].detach().contiguous()
            for prompts in (PROMPTS, [NEGATIVE_PROMPT])
        )

    def embeddings_of_last_layer_but_one(self):
        """As embeddings: diffusers' clip_skip 1, which WebUI calls 2. The final norm is applied."""
        encoder = self.pipeline.text_encoder
        object.__setattr__(encoder, "text_model", encoder)  # diffusers 0.42 looks for the module of transformers 4
        made = self.embeddings(clip_skip=1)
        object.__delattr__(encoder, "text_model")
        return made

    def sample(self, sampler, steps, **changes):
        """Latents after each step (s, n, c, h, w), as the scheduler keeps them, and the timesteps (s) f32."""
        self.pipeline.scheduler = SAMPLERS[sampler].from_config(self.config, **changes)
        after = []

        def keep(pipeline, step, timestep, kept):
            after.append(kept["latents"].clone())
            return kept

        with GivenNoise(self.noise):
            self.pipeline(
                prompt_embeds=self.text, negative_prompt_embeds=self.negative.expand_as(self.text),
                latents=self.latents.clone(), num_inference_steps=steps, guidance_scale=GUIDANCE, output_type="latent",
                callback_on_step_end=keep, height=self.latents.shape[2] * self.pipeline.vae_scale_factor,
                width=self.latents.shape[3] * self.pipeline.vae_scale_factor,
            )
        after = torch.stack(after)
        if not after.isfinite().all():
            raise SystemExit(f"{sampler}, {steps} steps, {changes}: not finite")
        return after, self.pipeline.scheduler.timesteps.float()

    def all_samplers(self):
        """The tensors that need no adapter."""
        made = {}
        for sampler in SAMPLERS:
            after, made[f"timesteps.{sampler}"] = self.sample(sampler, STEPS)
            made[f"first.{sampler}"], made[f"final.{sampler}"] = after[0], after[-1]
            after, made[f"timesteps7.{sampler}"] = self.sample(sampler, OTHER_STEPS)
            made[f"final7.{sampler}"] = after[-1]
            after, made[f"timesteps1.{sampler}"] = self.sample(sampler, 1)
            made[f"final1.{sampler}"] = after[-1]
            after, made[f"timestepst.{sampler}"] = self.sample(sampler, STEPS, timestep_spacing="trailing")
            made[f"finalt.{sampler}"] = after[-1]
        return made

    def with_adapter(self, path):
        """DDIM with the adapter at each of ADAPTER_SCALES, in the U-Net and in the text encoder."""
        made = {}
        self.pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="golden")
        for name, scale in ADAPTER_SCALES.items():
            self.pipeline.set_adapters("golden", scale)
            self.text, self.negative = self.embeddings()
            made[f"text.{name}"], made[f"negative_text.{name}"] = self.text, self.negative
            made[f"final.ddim.{name}"] = self.sample("ddim", STEPS)[0][-1]
        return made


def make_samples(folder):
    """Writes samples.safetensors and samples.json of one case."""
    drawing = Drawing(folder / "base", folder.name)
    made = dict(
        latents=drawing.latents, noise=drawing.noise, text=drawing.text, negative_text=drawing.negative,
        input_ids=token_ids(drawing.pipeline.tokenizer, PROMPTS),
        negative_input_ids=token_ids(drawing.pipeline.tokenizer, [NEGATIVE_PROMPT]),
    )
    made["text.clip_skip2"], made["negative_text.clip_skip2"] = drawing.embeddings_of_last_layer_but_one()
    made |= drawing.all_samplers() | drawing.with_adapter(folder / "adapter.safetensors")
    spacing = {name: SAMPLERS[name].from_config(drawing.config).config.timestep_spacing for name in SAMPLERS}
    save_file({key: value.detach().contiguous() for key, value in made.items()}, folder / "samples.safetensors")
    write_json(folder / "samples.json", dict(
        kind=folder.name, seed=SEEDS[folder.name], prompts=PROMPTS, negative_prompt=NEGATIVE_PROMPT, steps=STEPS,
        guidance=GUIDANCE, latent_size=SIZES[folder.name], prediction_type=drawing.config.prediction_type,
        adapter_scales=ADAPTER_SCALES, timestep_spacing=spacing,
    ))
    largest = {key: round(value.abs().max().item(), 2) for key, value in made.items() if key.startswith("final")}
    print(f"{folder.name}: {len(made)} tensors; largest of each result {largest}")


def run_alone(sampler, schedule, steps, latents, noise):
    """One sampler on the formula: timesteps, latents after the first and the last step, as lists."""
    scheduler = SAMPLERS[sampler].from_config(schedule)
    if sampler == "ddim" and schedule == SCHEDULES["zero-snr-epsilon"]:
        scheduler.alphas_cumprod[-1] = 2**-24  # as the others do; DDIM would divide by 0
    scheduler.set_timesteps(steps)
    xs, first = latents * scheduler.init_noise_sigma, None
    with GivenNoise(noise):
        for timestep in scheduler.timesteps:
            prediction = formula(scheduler.scale_model_input(xs, timestep), timestep.item())
            xs = scheduler.step(prediction, timestep, xs).prev_sample
            first = xs if first is None else first
    if not xs.isfinite().all():
        raise SystemExit(f"{sampler}, {steps} steps, {schedule}: not finite")
    return dict(
        timesteps=scheduler.timesteps.tolist(), spacing=scheduler.config.timestep_spacing,
        initial_scale=float(scheduler.init_noise_sigma), first=first.flatten().tolist(), final=xs.flatten().tolist(),
    )


def make_samplers(path):
    """Writes samplers.json: every sampler on every schedule, 20, 5 and 1 steps."""
    torch.manual_seed(SEEDS["samplers"])
    latents, noise = torch.randn(1, 4, 2, 3), torch.randn(20, 1, 4, 2, 3)
    runs = [
        dict(sampler=sampler, schedule=schedule, steps=steps, **run_alone(sampler, config, steps, latents, noise))
        for schedule, config in SCHEDULES.items() for sampler in SAMPLERS for steps in (20, 5, 1)
    ]
    whole = dict(
        formula=FORMULA, shape=[1, 4, 2, 3], schedules=SCHEDULES, latents=latents.flatten().tolist(),
        noise=noise.flatten(1).tolist(), runs=runs,
    )
    lines = [f'"{key}": {json.dumps(value)}' for key, value in whole.items() if key not in ("runs", "noise")]
    for key in ("noise", "runs"):  # one step, one run a line
        lines.append(f'"{key}": [\n' + ",\n".join(json.dumps(entry) for entry in whole[key]) + "\n]")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{path.name}: {len(runs)} runs, largest {max(max(map(abs, run['final'])) for run in runs):.2f}")


def main():
    parser = argparse.ArgumentParser(description="Makes what diffusers draws with the golden bases.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that holds sd1 and sd2")
    parser.add_argument("--only", choices=list(SEEDS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    torch.use_deterministic_algorithms(True)
    for name in SIZES:
        if options.only in (None, name):
            make_samples(options.out / name)
    if options.only in (None, "samplers"):
        make_samplers(options.out / "samplers.json")


if __name__ == "__main__":
    main()
