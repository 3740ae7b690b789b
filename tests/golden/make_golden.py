#!/usr/bin/env python3
"""Makes the golden cases: tiny Stable Diffusion bases, and what diffusers + PEFT compute with them.

    python make_golden.py [--out DIR] [--only sd1|sd2]

README.md beside this file says what each case holds; requirements.txt pins the versions. The same versions on the
same kind of machine give the same bytes. Nothing is left where an error could hide: norms and biases are randomised,
attention is far from uniform, both factors of every module are non-zero, rank != alpha, latents are not square,
every item of a batch has its own caption and timestep.

Axes: s steps, b batch, c channels, h w height and width, l tokens (77), d features, r rank.
"""
import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

STEPS = 20
TOKENS = 77
OPTIMIZER = dict(learning_rate=1e-3, betas=[0.9, 0.999], eps=1e-8, weight_decay=1e-2)
UNET_TARGETS = (
    r".*transformer_blocks.*(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)|.*attentions\.\d+\.proj_(in|out)"
)
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
BATCH_CAPTIONS = ["photo of the sks dog", "the dog of sks", "a dog", "photo", "sks on the hot sand"]
# One for every rule of the tokenizer: case, spaces, contractions, digits, marks, accents, other scripts, a picture
# character, nothing at all, and more words than fit.
TOKENIZER_CAPTIONS = BATCH_CAPTIONS + [
    "Photo of  the\tSKS Dog\n",
    "the dog's photo, isn't it? (1024x768)",
    "caf\u00e9 na\u00efve \u00fcber",
    "\u72ac\u306e\u5199\u771f",
    "dog \U0001f436!!!",
    "",
    "the sks dog of photo and sand " * 20,
]
PUBLISHED_CONFIG_KEYS = {
    "unet/config.json": "_class_name _diffusers_version act_fn attention_head_dim block_out_channels center_input_sample "
    "cross_attention_dim down_block_types downsample_padding flip_sin_to_cos freq_shift in_channels layers_per_block "
    "mid_block_scale_factor norm_eps norm_num_groups out_channels sample_size up_block_types",
    "vae/config.json": "_class_name _diffusers_version act_fn block_out_channels down_block_types in_channels "
    "latent_channels layers_per_block norm_num_groups out_channels sample_size up_block_types",
    "scheduler/scheduler_config.json": "_class_name _diffusers_version beta_end beta_schedule beta_start "
    "num_train_timesteps set_alpha_to_one skip_prk_steps steps_offset trained_betas clip_sample",
}


@dataclass(frozen=True)
class Case:
    """One case: the shapes of its base, the adapter's, and how the base's files are written."""

    name: str
    seed: int
    batch: int
    latent_size: tuple  # h, w
    unet: dict
    text: dict
    vae: dict
    scheduler: dict
    unet_rank_alpha: tuple
    text_rank_alpha: tuple
    pad_token: str
    # As the folders published in 2022: text encoder keys with "text_model." and a position_ids buffer, old names in
    # the VAE's attention, and configs with the keys of that time alone (the defaults of the others must be known).
    as_published: bool


CASES = [
    Case(
        name="sd1", seed=101, batch=2, latent_size=(12, 8),
        unet=dict(
            block_out_channels=(8, 16, 24), layers_per_block=1, cross_attention_dim=24, attention_head_dim=4,
            norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        ),
        text=dict(
            hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3, hidden_act="quick_gelu",
        ),
        vae=dict(block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4),
        scheduler=dict(),
        unet_rank_alpha=(3, 2.0), text_rank_alpha=(2, 3.0), pad_token="<|endoftext|>", as_published=True,
    ),
    Case(
        name="sd2", seed=102, batch=3, latent_size=(6, 10),
        unet=dict(
            block_out_channels=(8, 16), layers_per_block=2, cross_attention_dim=32, attention_head_dim=[1, 4],
            norm_num_groups=8, use_linear_projection=True, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ),
        text=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, hidden_act="gelu"),
        vae=dict(
            block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=8, mid_block_add_attention=False,
            scaling_factor=0.31,
        ),
        scheduler=dict(prediction_type="v_prediction", rescale_betas_zero_snr=True),
        unet_rank_alpha=(2, 5.0), text_rank_alpha=(3, 1.5), pad_token="!", as_published=False,
    ),
]


def write_tokenizer(folder, pad_token):
    """A vocabulary in CLIP's format: the 256 bytes, the same with the end-of-word mark, a few merges, two marks."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    letters = [chr(byte) for byte in kept] + [chr(256 + index) for index in range(len(moved))]
    pairs = "t h,th e</w>,a n,an d</w>,p h,ph o,pho t,phot o</w>,d o,do g</w>,o f</w>,s k,sk s</w>,h o,ho t</w>".split(",")
    merged = [pair.replace(" ", "") for pair in pairs]
    entries = [*letters, *(letter + "</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    marks = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token=pad_token)
    folder.mkdir(parents=True)
    write_json(folder / "vocab.json", {entry: index for index, entry in enumerate(entries)}, indent=None)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(pair + "\n" for pair in pairs))
    write_json(folder / "special_tokens_map.json", marks)
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=TOKENS, do_lower_case=True, **marks)
    write_json(folder / "tokenizer_config.json", config)
    return len(entries)


def randomise(model):
    """Moves what starts at a value that hides errors: norms at (1, 0), biases at 0, attention close to uniform."""
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith(("to_q.weight", "to_k.weight", "q_proj.weight", "k_proj.weight")):
                parameter.mul_(3.0)
            elif name == "conv_out.weight":  # the norm before it fixes its input's size: let predictions reach 1
                parameter.mul_(3.0)
            elif "embedding" in name and parameter.shape[0] >= TOKENS:
                parameter.mul_(10.0)


def write_base(case, folder):
    """The whole pipeline in diffusers layout, f32."""
    num_entries = write_tokenizer(folder / "tokenizer", case.pad_token)
    marks = dict(bos_token_id=num_entries - 2, eos_token_id=num_entries - 1, pad_token_id=num_entries - 1)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=num_entries, max_position_embeddings=TOKENS, projection_dim=case.text["hidden_size"], **marks,
            **case.text,
        )
    )
    unet = UNet2DConditionModel(sample_size=case.latent_size[0], **case.unet)
    levels = len(case.vae["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4, sample_size=case.latent_size[0] * 2 ** (levels - 1), **case.vae,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False,
        steps_offset=1, **case.scheduler,
    )
    for part, model in (("text_encoder", text_encoder), ("unet", unet), ("vae", vae)):
        randomise(model)
        model.save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", dict(
        _class_name="StableDiffusionPipeline", _diffusers_version=diffusers.__version__,
        feature_extractor=[None, None], requires_safety_checker=False, safety_checker=[None, None],
        scheduler=["diffusers", "DDPMScheduler"], text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
    ))
    rename_text_keys(folder / "text_encoder/model.safetensors", case.as_published)
    if case.as_published:
        rename_vae_attention(folder / "vae/diffusion_pytorch_model.safetensors")
        for name, keys in PUBLISHED_CONFIG_KEYS.items():
            config = json.loads((folder / name).read_text())
            write_json(folder / name, {key: config[key] for key in keys.split() if key in config})


def rename_text_keys(path, with_prefix):
    """With the prefix "text_model." and the position_ids buffer of the published folders, or without either."""
    weights = {key.removeprefix("text_model."): value for key, value in load_file(path).items()}
    if with_prefix:
        weights["embeddings.position_ids"] = torch.arange(TOKENS)[None]
        weights = {"text_model." + key: value for key, value in weights.items()}
    save_file(weights, path, metadata=dict(format="pt"))


def rename_vae_attention(path):
    """The names that the VAE's attention had before diffusers 0.16."""
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = {}
    for key, value in load_file(path).items():
        for new_name, old_name in old.items():
            key = key.replace(new_name, old_name)
        weights[key] = value
    save_file(weights, path, metadata=dict(format="pt"))


def token_ids(tokenizer, captions):
    """(captions, l) i64, padded and cut to l tokens."""
    return tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def write_parts(pipeline, folder):
    """What each part makes alone: token ids, text embeddings, posterior mean and std, decoded pictures."""
    down = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    ids = token_ids(pipeline.tokenizer, TOKENIZER_CAPTIONS)
    image = torch.rand(2, 3, 3 * down, 5 * down) * 2 - 1  # (b, 3, h, w) in [-1, 1]
    latents_in = torch.randn(2, 4, 3, 5)  # as the decoder takes them: not scaled
    with torch.no_grad():
        posterior = pipeline.vae.encode(image).latent_dist
        parts = dict(
            caption_ids=ids, input_ids=ids[:5].clone(), text=pipeline.text_encoder(ids[:5]).last_hidden_state,
            image=image, vae_mean=posterior.mean, vae_std=posterior.std,
            latents_in=latents_in, decoded=pipeline.vae.decode(latents_in).sample,
        )
    save_file({key: value.contiguous() for key, value in parts.items()}, folder / "parts.safetensors")
    write_json(folder / "captions.json", TOKENIZER_CAPTIONS)


def inject(pipeline, case):
    """Adds LoRA to the U-Net and the text encoder. Returns kohya key -> factor, sorted, and kohya module -> alpha."""
    factors, alphas = {}, {}
    for prefix, model, targets, (rank, alpha) in (
        ("lora_unet_", pipeline.unet, UNET_TARGETS, case.unet_rank_alpha),
        ("lora_te_", pipeline.text_encoder, TEXT_TARGETS, case.text_rank_alpha),
    ):
        model.requires_grad_(False)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), model)
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            path, side = name.split(".lora_")
            if prefix == "lora_te_":
                path = "text_model." + path.removeprefix("text_model.")
            module = prefix + path.replace(".", "_")
            factors[f"{module}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = parameter
            alphas[module] = alpha
    with torch.no_grad():
        for key, parameter in sorted(factors.items()):
            size = 0.1 if ".lora_up" in key else parameter.flatten(1).shape[1] ** -0.5
            parameter.copy_(torch.randn_like(parameter) * size)
    return dict(sorted(factors.items())), alphas


def make_batch(tokenizer, case):
    """latents, noise (s, b, 4, h, w) f32; timesteps (s, b) and input_ids (s, b, l) i64."""
    shape = (STEPS, case.batch, 4, *case.latent_size)
    captions = [BATCH_CAPTIONS[(step + item) % len(BATCH_CAPTIONS)] for step in range(STEPS) for item in range(case.batch)]
    timesteps = torch.randint(0, 1000, (STEPS, case.batch))
    timesteps[1, 0], timesteps[2, 1] = 999, 0  # both ends of the schedule
    return dict(
        latents=torch.randn(shape), noise=torch.randn(shape), timesteps=timesteps,
        input_ids=token_ids(tokenizer, captions).view(STEPS, case.batch, TOKENS).contiguous(),
    )


def train(pipeline, factors, batch):
    """The training steps: prediction and gradients of the first, the loss of each, the factors after all."""
    unet, text_encoder, scheduler = pipeline.unet, pipeline.text_encoder, pipeline.scheduler
    optimizer = torch.optim.AdamW(
        factors.values(), lr=OPTIMIZER["learning_rate"], betas=tuple(OPTIMIZER["betas"]), eps=OPTIMIZER["eps"],
        weight_decay=OPTIMIZER["weight_decay"],
    )
    expected, losses = {}, []
    for latents, noise, timesteps, input_ids in zip(*(batch[key] for key in ("latents", "noise", "timesteps", "input_ids"))):
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = unet(noisy, timesteps, text_encoder(input_ids).last_hidden_state).sample
        velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        loss = torch.nn.functional.mse_loss(prediction, target)
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            expected["pred"] = prediction.detach().contiguous()
            expected |= {f"grad.{key}": parameter.grad.clone().contiguous() for key, parameter in factors.items()}
        optimizer.step()
        losses.append(loss.item())
    expected["loss"] = torch.tensor(losses)
    return expected | {f"final.{key}": parameter.detach().clone().contiguous() for key, parameter in factors.items()}


def write_json(path, value, indent=1):
    path.write_text(json.dumps(value, indent=indent) + "\n")


def make(case, folder):
    """Writes one whole case into a folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(case.seed)
    write_base(case, folder / "base")
    # Read back: what is expected is what diffusers makes of the files, not of the models they came from.
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "base", torch_dtype=torch.float32, safety_checker=None)
    pipeline.tokenizer = CLIPTokenizer.from_pretrained(folder / "base/tokenizer")
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.vae):
        model.eval()
    write_parts(pipeline, folder)
    factors, alphas = inject(pipeline, case)
    adapter = {key: parameter.detach().clone().contiguous() for key, parameter in factors.items()}
    adapter |= {f"{module}.alpha": torch.tensor(alpha) for module, alpha in alphas.items()}
    save_file(adapter, folder / "adapter.safetensors")
    batch = make_batch(pipeline.tokenizer, case)
    save_file(batch, folder / "batch.safetensors")
    expected = train(pipeline, factors, batch)
    save_file(expected, folder / "expected.safetensors")
    losses = expected["loss"].tolist()
    write_json(folder / "case.json", dict(
        kind=case.name, seed=case.seed, steps=STEPS, batch=case.batch, latent_size=case.latent_size,
        prediction_type=pipeline.scheduler.config.prediction_type,
        unet=dict(zip(("rank", "alpha"), case.unet_rank_alpha)), text_encoder=dict(zip(("rank", "alpha"), case.text_rank_alpha)),
        optimizer=OPTIMIZER, factors=len(factors), first_loss=losses[0], last_loss=losses[-1],
    ))
    size_kb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1000
    print(f"{case.name}: {len(factors)} factors, loss {losses[0]:.5f} -> {losses[-1]:.5f}, {size_kb:.0f} kB")


def main(description, cases, make_case):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that gets a folder per case")
    parser.add_argument("--only", choices=[case.name for case in cases])
    options = parser.parse_args()
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    torch.use_deterministic_algorithms(True)
    for case in cases:
        if options.only in (None, case.name):
            make_case(case, options.out / case.name)


if __name__ == "__main__":
    main("Makes the golden cases from diffusers + PEFT.", CASES, make)
