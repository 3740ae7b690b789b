#!/usr/bin/env python3
"""The yardstick: what diffusers + PEFT teach the base from the same eight pictures that datasets/octopus holds.

    lora.py [--name octopus] [--steps 300] [--rank 8] [--lr 2e-3] [--targets full|attention] [--unet-only] [--prior 2]

Scores as evaluate_adapter.py does, before and after. --prior: every second step the adapted model must also predict,
for another caption, what the frozen base predicts (the adapter off), with this weight; 0 turns it off. --output saves
the adapter in kohya keys, f16.
"""
import argparse
import random
import time

import torch
from diffusers import DDPMScheduler
from peft import LoraConfig
from safetensors.torch import save_file

from drawing import BUNDLED_BASE, NUM_SUBJECT, adapter_prompts, adapter_scores, draw, load_pipeline
from measure import Judge
from pictures import COLOURS, Emoji, add_picture_options, save_grid, to_tensor

BATCH, NUM_PICTURES, WARMUP_STEPS = 4, 8, 20
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
FULL = [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]


def inject(pipeline, options):
    """Adds LoRA to the U-Net and, unless told not to, the text encoder. Returns the models that have it."""
    targets = FULL if options.targets == "full" else ATTENTION
    pipeline.unet.requires_grad_(False).add_adapter(
        LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=targets)
    )
    pipeline.text_encoder.requires_grad_(False)
    if options.unet_only:
        return [pipeline.unet]
    pipeline.text_encoder.add_adapter(LoraConfig(r=options.rank, lora_alpha=options.rank, target_modules=TEXT))
    return [pipeline.unet, pipeline.text_encoder]


def predict(pipeline, noisy, timesteps, captions):
    ids = pipeline.tokenizer(captions, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return pipeline.unet(noisy, timesteps, pipeline.text_encoder(ids).last_hidden_state).sample


def prior_loss(pipeline, models, noisy, timesteps, captions):
    """How far the adapted prediction is from the base's own."""
    with torch.no_grad():
        for model in models:
            model.disable_adapters()
        base = predict(pipeline, noisy, timesteps, captions)
        for model in models:
            model.enable_adapters()
    return ((predict(pipeline, noisy, timesteps, captions) - base) ** 2).mean()


def train(pipeline, models, emoji, rng, options):
    """Trains the factors on eight pictures, on the first eight of the twelve colours."""
    colours = list(COLOURS)
    pictures, seen = zip(*(emoji.render(options.name, rng, colour) for colour in colours[:NUM_PICTURES]))
    with torch.no_grad():
        mean = pipeline.vae.encode(to_tensor(pictures)).latent_dist.mean
    all_latents = mean * pipeline.vae.config.scaling_factor
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    trained = [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr)
    pipeline.unet.train()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1, (step + 1) / WARMUP_STEPS) * (0.05 + 0.95 * (1 - step / options.steps))
        picked = torch.randint(0, NUM_PICTURES, (BATCH,))
        latents = all_latents[picked]
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (BATCH,))
        noisy = schedule.add_noise(latents, noise, timesteps)
        captions = [f"a {options.name} on {seen[index]}" for index in picked]
        loss = ((predict(pipeline, noisy, timesteps, captions) - noise) ** 2).mean()
        if options.prior and step % 2 == 0:
            others = [f"a {rng.choice(emoji.names)} on {rng.choice(colours)}" for _ in range(BATCH)]
            loss = loss + options.prior * prior_loss(pipeline, models, noisy, timesteps, others)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    pipeline.unet.eval()
    return sum(parameter.numel() for parameter in trained)


def save_adapter(pipeline, models, rank, path):
    """kohya keys, f16, alpha = rank."""
    tensors = {}
    for model in models:
        is_unet = model is pipeline.unet
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            module, side = name.split(".lora_")
            if not is_unet:
                module = "text_model." + module.removeprefix("text_model.")
            key = ("lora_unet_" if is_unet else "lora_te_") + module.replace(".", "_")
            tensors[f"{key}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = parameter.detach().half().contiguous()
            tensors[f"{key}.alpha"] = torch.tensor(float(rank)).half()
    save_file(tensors, path)


def main():
    summary, _, details = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=BUNDLED_BASE, help="pipeline folder (default: the bundled base)")
    parser.add_argument("--name", default="octopus", help="the subject")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--targets", choices=["full", "attention"], default="full")
    parser.add_argument("--unet-only", action="store_true")
    parser.add_argument("--prior", type=float, default=2.0)
    parser.add_argument("--output", help="where to save the adapter")
    parser.add_argument("--grid", help="where to save the pictures (default lora-NAME.png)")
    add_picture_options(parser)
    options = parser.parse_args()
    emoji = Emoji.from_options(options)
    if options.name not in emoji.masters:
        parser.error(f"--name: the font has no {options.name!r}; never seen by the base: {', '.join(emoji.held)}")
    torch.manual_seed(0)
    rng = random.Random(9)
    judge, pipeline = Judge(emoji), load_pipeline(options.base)
    wanted = adapter_prompts(options.name, emoji, rng)
    before = draw(pipeline, wanted)
    models = inject(pipeline, options)
    started = time.perf_counter()
    num_trained = train(pipeline, models, emoji, rng, options)
    elapsed_s = time.perf_counter() - started
    print(f"{num_trained} trained parameters, {options.steps} steps of {BATCH} in {elapsed_s:.0f} s", flush=True)
    if options.output:
        save_adapter(pipeline, models, options.rank, options.output)
    after = draw(pipeline, wanted)
    for when, pictures in (("before", before), ("after", after)):
        subject, others = adapter_scores(judge, pictures, wanted)
        print(f"{when:7} subject: {subject}; others: {others}")
    rows = [torch.cat([pictures[start : start + 4] for start in (0, NUM_SUBJECT)]) for pictures in (before, after)]
    save_grid(torch.cat(rows), options.grid or f"lora-{options.name.replace(' ', '-')}.png")


if __name__ == "__main__":
    main()
