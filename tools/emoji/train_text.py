#!/usr/bin/env python3
"""Trains the text encoder alone; it is frozen afterwards.

    train_text.py --out DIR --seconds 400        needs OUT/tokenizer, writes OUT/text_encoder

From a caption's last token it has to tell the name, the colour and a thumbnail of the picture. Without this the U-Net
spends its budget on finding out what the words mean.
"""
import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pictures import COLOURS, TEMPLATES, Emoji, add_picture_options, over

WIDTH, LAYERS, HEADS = 128, 4, 4
THUMBNAIL_PX = 24
BATCH, PEAK_LR = 48, 1e-3


def new_text_encoder(tokenizer):
    """CLIP, 4 layers x 128, 0.94 M parameters."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=77, hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip


def thumbnails(emoji):
    """Every name on every colour, small: (names, colours, THUMBNAIL_PX ** 2 * 3) f32 in [-1, 1]."""
    grounds = np.array(list(COLOURS.values()), np.float32)[:, None, None]
    small = [over(emoji.resized(name, THUMBNAIL_PX), grounds) / 127.5 - 1 for name in emoji.names]
    return torch.from_numpy(np.stack(small)).flatten(2)


def train(text_encoder, tokenizer, emoji, seconds):
    """Trains the encoder and three heads that are thrown away."""
    rng, colours, targets = random.Random(3), list(COLOURS), thumbnails(emoji)
    heads = torch.nn.ModuleDict({
        "name": torch.nn.Linear(WIDTH, len(emoji.names)),
        "colour": torch.nn.Linear(WIDTH, len(colours)),
        "thumbnail": torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 512), torch.nn.SiLU(), torch.nn.Linear(512, targets.shape[-1])
        ),
    })  # fmt: skip
    trained = [*text_encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=PEAK_LR, weight_decay=1e-3, betas=(0.9, 0.99))
    started, step = time.time(), 0
    while (done := (time.time() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1, (step + 1) / 100) * (0.02 + 0.98 * (1 - done))
        name = torch.tensor([rng.randrange(len(emoji.names)) for _ in range(BATCH)])
        colour = torch.tensor([rng.randrange(len(colours)) for _ in range(BATCH)])
        # The last template names no colour.
        captions = [rng.choice(TEMPLATES[:-1]).format(n=emoji.names[n], c=colours[c]) for n, c in zip(name, colour)]
        ids = tokenizer(captions, padding="longest", return_tensors="pt").input_ids  # causal: the padding changes nothing
        pooled = text_encoder(ids).pooler_output
        name_loss = F.cross_entropy(heads["name"](pooled), name)
        colour_loss = F.cross_entropy(heads["colour"](pooled), colour)
        thumbnail_loss = F.mse_loss(heads["thumbnail"](pooled), targets[name, colour])
        optimizer.zero_grad()
        (name_loss + colour_loss + 10 * thumbnail_loss).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            elapsed_s = time.time() - started
            print(
                f"step {step}, {elapsed_s:.0f} s, name {name_loss:.3f}, colour {colour_loss:.3f}, "
                f"thumbnail {thumbnail_loss:.4f}", flush=True,
            )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description="Trains the bundled base's text encoder.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=400)
    add_picture_options(parser)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(options.out / "tokenizer")
    text_encoder = new_text_encoder(tokenizer)
    train(text_encoder, tokenizer, Emoji.from_options(options), options.seconds)
    text_encoder.save_pretrained(options.out / "text_encoder")


if __name__ == "__main__":
    main()
