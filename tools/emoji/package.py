#!/usr/bin/env python3
"""Puts OUT's parts together as an ordinary diffusers pipeline, in f16.

    package.py --out DIR FOLDER

vocab.json and merges.txt are kept beside tokenizer.json, for programs that read those.
"""
import argparse
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from train_unet import SCHEDULE


def main():
    parser = argparse.ArgumentParser(description="Puts the bundled base together.")
    parser.add_argument("--out", type=Path, required=True, help="where the training scripts wrote")
    parser.add_argument("folder", type=Path, help="where the pipeline goes")
    options = parser.parse_args()
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(options.out / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(options.out / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(options.out / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(options.out / "unet"),
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(torch.float16).save_pretrained(options.folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(options.out / "tokenizer" / name, options.folder / "tokenizer" / name)


if __name__ == "__main__":
    main()
