#!/usr/bin/env python3
"""Trains the autoencoder: 64 px to 16 x 16 x 4. Goes on from OUT/vae if it is there.

    train_vae.py --out DIR --seconds 1500 [--decoder-only]

With --decoder-only the encoder stays as it is, so the latents, and a U-Net taught on them, stay valid.
"""
import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from pictures import SIZE_PX, Emoji, add_picture_options, save_grid

BATCH = 16
PEAK_LR, DECODER_PEAK_LR = 1.2e-3, 6e-4


def new_vae():
    """3 levels (32, 64, 96), 1.62 M parameters, no attention."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(32, 64, 96), layers_per_block=1,
        latent_channels=4, norm_num_groups=8, sample_size=SIZE_PX, mid_block_add_attention=False,
    )  # fmt: skip


def edge_error(decoded, pictures):
    """Mean absolute error of the differences between neighbours, along both axes."""
    error = decoded - pictures
    return (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()


def reconstruction_loss(decoded, pictures, posterior):
    """Absolute, squared and edge error, the 8 px average of the error, and a little KL.

    The 8 px term is against whole patches in another colour: a green pear that comes out yellow.
    """
    error = decoded - pictures
    coarse = (F.avg_pool2d(error, 8) ** 2).mean()
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return error.abs().mean() + 0.5 * edge_error(decoded, pictures) + 2 * (error**2).mean() + 10 * coarse + 3e-4 * kl


def reconstruct(vae, pictures):
    """The sampled latents of pictures, what they decode to, and the PSNR in dB."""
    latents = vae.encode(pictures).latent_dist.sample()
    decoded = vae.decode(latents).sample.clamp(-1, 1)
    return latents, decoded, 10 * torch.log10(4 / ((decoded - pictures) ** 2).mean()).item()


def train(vae, emoji, options):
    """Trains for options.seconds; half of the time on what the base draws, half on every other emoji."""
    rng, pool = random.Random(1), emoji.names * 8 + emoji.rest
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_LR, weight_decay=0, betas=(0.9, 0.99))
    peak_lr = DECODER_PEAK_LR if options.decoder_only else PEAK_LR
    half = torch.cpu._is_amx_tile_supported()  # bf16 without matrix tiles is four times slower than f32
    started, step = time.time(), 0
    while (done := (time.time() - started) / options.seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min(1, (step + 1) / 50) * (0.02 + 0.98 * (1 - done) ** 1.2)
        pictures = emoji.batch(BATCH, rng, pool)[0].to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            posterior = vae.encode(pictures).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(decoded.float(), pictures, posterior)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            print(f"step {step}, {time.time() - started:.0f} s, loss {loss.item():.4f}", flush=True)
    return step


def main():
    parser = argparse.ArgumentParser(description="Trains the bundled base's autoencoder.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=1500)
    parser.add_argument("--decoder-only", action="store_true")
    add_picture_options(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    emoji, folder = Emoji.from_options(options), options.out / "vae"
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32) if folder.exists() else new_vae()
    vae = vae.train().to(memory_format=torch.channels_last)
    if options.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    num_steps = train(vae, emoji, options)

    vae.eval()
    with torch.no_grad():
        pictures = emoji.batch(96, random.Random(5), emoji.names)[0]
        latents, decoded, psnr_seen = reconstruct(vae, pictures)
        psnr_held = reconstruct(vae, emoji.batch(96, random.Random(6), emoji.held)[0])[2]
    if not options.decoder_only:
        vae.register_to_config(scaling_factor=1 / latents.std().item())
    print(f"PSNR seen {psnr_seen:.1f} dB, held out {psnr_held:.1f} dB, scale {vae.config.scaling_factor:.3f}, {num_steps} steps")
    save_grid(torch.cat([pictures[:8], decoded[:8], pictures[8:16], decoded[8:16]]), options.out / "vae.png")
    vae.requires_grad_(True).save_pretrained(folder)


if __name__ == "__main__":
    main()
