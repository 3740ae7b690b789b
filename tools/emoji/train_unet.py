#!/usr/bin/env python3
"""Trains the U-Net, on latents and caption embeddings computed once. Goes on from OUT/unet if it is there.

    train_unet.py --out DIR --seconds 5400 [--peak-lr 1e-3]

Needs OUT/tokenizer, OUT/vae and OUT/text_encoder. Min-SNR 5 weighting, batch 64, learning rate falling to 0; what is
saved is a moving average of the weights.
"""
import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from pictures import COLOURS, TEMPLATES, Emoji, add_picture_options, save_grid

PICTURES_PER_NAME = 120
BATCH = 64
CAPTION_DROPOUT = 0.1
AVERAGE_DECAY = 0.998
SNR_LIMIT = 5
SAVE_EVERY_S = 900
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def new_unet():
    """3 levels (64, 128, 160), one layer each, 7.24 M parameters."""
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(64, 128, 160), layers_per_block=1, cross_attention_dim=128,
        attention_head_dim=4, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


@dataclass
class Cache:
    """Everything that does not change while the U-Net learns."""

    latents: torch.Tensor  # (pictures, 4, 16, 16), scaled
    labels: torch.Tensor  # (pictures, 2): index of the name, of the colour
    embeddings: torch.Tensor  # (templates, names, colours, 77, 128) bf16
    empty: torch.Tensor  # (77, 128): the empty caption


class FrozenParts:
    """The autoencoder, the text encoder and its tokenizer."""

    def __init__(self, folder):
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        self.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")

    def embed(self, captions):
        """(captions, 77, 128)"""
        ids = self.tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        return self.text_encoder(ids).last_hidden_state

    @torch.no_grad()
    def cache(self, emoji, rng, half):
        latents, labels, colours = [], [], list(COLOURS)
        for index, name in enumerate(emoji.names):
            pictures, wanted = emoji.batch(PICTURES_PER_NAME, rng, [name])
            labels += [(index, colours.index(colour)) for _, colour in wanted]
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                latents.append(self.vae.encode(pictures).latent_dist.mean.float() * self.vae.config.scaling_factor)
        shape = (len(emoji.names), len(colours), 77, -1)
        embeddings = [
            self.embed([template.format(n=name, c=colour) for name in emoji.names for colour in colours]).bfloat16().view(shape)
            for template in TEMPLATES
        ]
        return Cache(torch.cat(latents), torch.tensor(labels), torch.stack(embeddings), self.embed([""])[0])


@torch.no_grad()
def sample(unet, parts, empty, prompts, steps=25, guidance=4.0, seed=0):
    """Pictures (prompts, 3, 64, 64) in [-1, 1] by DDIM."""
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    latents = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    context = torch.cat([empty.expand(len(prompts), -1, -1), parts.embed(prompts)])
    for timestep in scheduler.timesteps:
        without, given = unet(torch.cat([latents, latents]), timestep, context).sample.chunk(2)
        latents = scheduler.step(without + guidance * (given - without), timestep, latents).prev_sample
    return parts.vae.decode(latents / parts.vae.config.scaling_factor).sample


class Trainer:
    """The U-Net, its optimizer and the average of its weights."""

    def __init__(self, unet, parts, cache, emoji, options, half):
        self.unet, self.parts, self.cache, self.out, self.half = unet, parts, cache, options.out, half
        self.peak_lr = options.peak_lr
        self.weights = list(unet.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=self.peak_lr, weight_decay=1e-2, betas=(0.9, 0.99))
        self.schedule = DDPMScheduler(**SCHEDULE)
        shown = random.Random(3).sample(emoji.names, 24)
        self.shown_prompts = [f"a {name} on {colour}" for name, colour in zip(shown, list(COLOURS) * 2)]

    def loss(self):
        cache, picked = self.cache, torch.randint(0, len(self.cache.latents), (BATCH,))
        latents = cache.latents[picked]
        name, colour = cache.labels[picked].T
        context = cache.embeddings[torch.randint(0, len(TEMPLATES), (BATCH,)), name, colour].float()
        context[torch.rand(BATCH) < CAPTION_DROPOUT] = cache.empty
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (BATCH,))
        noisy = self.schedule.add_noise(latents, noise, timesteps).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.half):
            prediction = self.unet(noisy, timesteps, context).sample
        kept = self.schedule.alphas_cumprod[timesteps]
        snr = kept / (1 - kept)
        weight = (snr.clamp(max=SNR_LIMIT) / snr).clamp(min=0.05)
        error = prediction.float() - noise
        # The schedule's last step still shows a little of the picture: without a term on each channel's mean error,
        # backgrounds drift to a neighbouring colour.
        mean_error = (error.mean((2, 3)) ** 2).mean(1)
        return (((error**2).mean((1, 2, 3)) + 20 * mean_error) * weight).mean()

    def step(self, index, done):
        """One step; done: the share of the time that is over. Returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.peak_lr * min(1, (index + 1) / 100) * (0.02 + 0.98 * (1 - done))
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        decay = min(AVERAGE_DECAY, (2 + index) / (11 + index))  # short at first
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        return loss.item()

    @torch.no_grad()
    def save(self):
        """Saves the averaged weights, and pictures drawn with them."""
        kept = [weight.detach().clone() for weight in self.weights]
        for weight, average in zip(self.weights, self.average):
            weight.copy_(average)
        save_grid(sample(self.unet, self.parts, self.cache.empty, self.shown_prompts), self.out / "samples.png")
        self.unet.save_pretrained(self.out / "unet")
        for weight, value in zip(self.weights, kept):
            weight.copy_(value)


def main():
    parser = argparse.ArgumentParser(description="Trains the bundled base's U-Net.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=5400)
    parser.add_argument("--peak-lr", type=float, default=1e-3)
    add_picture_options(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    half = torch.cpu._is_amx_tile_supported()  # bf16 without matrix tiles is four times slower than f32
    emoji, parts, folder = Emoji.from_options(options), FrozenParts(options.out), options.out / "unet"
    unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32) if folder.exists() else new_unet()
    unet = unet.train().to(memory_format=torch.channels_last)
    trainer = Trainer(unet, parts, parts.cache(emoji, random.Random(2), half), emoji, options, half)

    started = saved = time.time()
    index, smoothed = 0, None
    while (done := (time.time() - started) / options.seconds) < 1:
        loss = trainer.step(index, done)
        smoothed = loss if smoothed is None else 0.99 * smoothed + 0.01 * loss
        index += 1
        if index % 100 == 0:
            print(f"step {index}, {time.time() - started:.0f} s, loss {smoothed:.4f}", flush=True)
        if time.time() - saved > SAVE_EVERY_S:
            trainer.save()
            saved = time.time()
    trainer.save()
    print(f"{index} steps")


if __name__ == "__main__":
    main()
