#!/usr/bin/env python3
"""Makes the golden cases of SDXL: tiny bases with two text encoders, and what diffusers + PEFT compute with them.

    python make_golden_sdxl.py [--out DIR] [--only sdxl|sdxl-v]

As make_golden.py, which says what all cases have in common; README.md beside this file says what each case holds. What is
SDXL's own: a second tokenizer that pads with "!", the last hidden state but one of both encoders side by side, the pooled
text of the second, six sizes of each picture, and factors under kohya's keys with the original names of blocks.

Axes: s steps, b batch, c channels, h w height and width, l tokens (77), d features, r rank.
"""
import shutil
from dataclasses import dataclass

import diffusers
import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from make_golden import (
    BATCH_CAPTIONS, OPTIMIZER, STEPS, TEXT_TARGETS, TOKENIZER_CAPTIONS, TOKENS, UNET_TARGETS, main, randomise, rename_text_keys,
    token_ids, write_json, write_tokenizer,
)
from make_single_file import unet_module

# "#" has the id 2, which old configs call the end mark; "!" is what the second tokenizer pads with.
CAPTIONS = TOKENIZER_CAPTIONS + ["photo # dog #", "!", "!!", "the dog! of!sks !! photo", "! " * 80 + "dog"]
# Odd sizes that bf16 would round, and the largest: original h, w; crop top, left; target h, w.
SIZES = [[3001, 1500, 0, 257, 1216, 832], [257, 4096, 129, 0, 512, 1024], [1023, 767, 63, 5, 1024, 768]]


@dataclass(frozen=True)
class Case:
    """One case: the shapes of its base, the adapter's, and how the base's files are written."""

    name: str
    seed: int
    batch: int
    latent_size: tuple  # h, w
    unet: dict
    text: dict
    text_2: dict
    vae: dict
    scheduler: dict
    unet_targets: str
    unet_rank_alpha: tuple
    text_rank_alpha: tuple
    text_2_rank_alpha: tuple
    # As the folder published in 2023: the configs of both encoders name marks that are not the vocabulary's, and the
    # first one's keys have "text_model.".
    as_published: bool


UNET = dict(
    layers_per_block=2, use_linear_projection=True,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
)
TEXT = dict(hidden_size=12, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, hidden_act="quick_gelu")
TEXT_2 = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, hidden_act="gelu")
VAE = dict(layers_per_block=1, norm_num_groups=4, scaling_factor=0.13025, force_upcast=True)
EVERYWHERE = (  # where trainers of convolutions put factors, and the added embedding
    r"|down_blocks\.1\.resnets\.0\.(conv1|conv2|conv_shortcut|time_emb_proj)|down_blocks\.1\.downsamplers\.0\.conv"
    r"|up_blocks\.1\.resnets\.2\.(conv1|time_emb_proj)|up_blocks\.1\.upsamplers\.0\.conv|conv_in|conv_out"
    r"|mid_block\.resnets\.1\.conv2|time_embedding\.linear_1|add_embedding\.linear_[12]"
)
CASES = [
    Case(
        name="sdxl", seed=103, batch=2, latent_size=(12, 8),
        unet=UNET | dict(
            block_out_channels=(4, 8, 12), attention_head_dim=[1, 2, 3], transformer_layers_per_block=[1, 2, 1],
            norm_num_groups=4, addition_time_embed_dim=8,
        ),
        text=TEXT, text_2=TEXT_2 | dict(projection_dim=16), vae=VAE | dict(block_out_channels=(4, 8)), scheduler=dict(),
        unet_targets=UNET_TARGETS, unet_rank_alpha=(2, 3.0), text_rank_alpha=(3, 2.0), text_2_rank_alpha=(2, 1.0),
        as_published=True,
    ),
    Case(
        name="sdxl-v", seed=124, batch=2, latent_size=(8, 12),
        unet=UNET | dict(
            block_out_channels=(4, 8, 8), attention_head_dim=[1, 4, 2], transformer_layers_per_block=[1, 1, 2],
            norm_num_groups=2, addition_time_embed_dim=6,
        ),
        text=TEXT, text_2=TEXT_2 | dict(projection_dim=14), vae=VAE | dict(block_out_channels=(4, 4, 8)),
        scheduler=dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        unet_targets=UNET_TARGETS + EVERYWHERE, unet_rank_alpha=(1, 2.0), text_rank_alpha=(1, 0.5), text_2_rank_alpha=(2, 3.0),
        as_published=False,
    ),
]


def text_config(shape, num_entries, as_published):
    """A text encoder's config."""
    end = num_entries - 1
    marks = (0, 2, 1) if as_published else (end - 1, end, end)
    return CLIPTextConfig(
        vocab_size=num_entries, max_position_embeddings=TOKENS,
        **dict(zip(("bos_token_id", "eos_token_id", "pad_token_id"), marks)),
        **dict(projection_dim=shape["hidden_size"]) | shape,
    )


def write_base(case, folder):
    """The whole pipeline in diffusers layout, f32."""
    num_entries = write_tokenizer(folder / "tokenizer", "<|endoftext|>")
    write_tokenizer(folder / "tokenizer_2", "!")
    text_encoder = CLIPTextModel(text_config(case.text, num_entries, case.as_published))
    text_encoder_2 = CLIPTextModelWithProjection(text_config(case.text_2, num_entries, case.as_published))
    context = case.text["hidden_size"] + case.text_2["hidden_size"]
    added = case.text_2["projection_dim"] + 6 * case.unet["addition_time_embed_dim"]
    unet = UNet2DConditionModel(
        sample_size=case.latent_size[0], cross_attention_dim=context, projection_class_embeddings_input_dim=added, **case.unet,
    )
    levels = len(case.vae["block_out_channels"])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4, sample_size=case.latent_size[0] * 2 ** (levels - 1), **case.vae,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, clip_sample=False,
        steps_offset=1, **dict(timestep_spacing="leading") | case.scheduler,
    )
    parts = dict(text_encoder=text_encoder, text_encoder_2=text_encoder_2, unet=unet, vae=vae)
    for part, model in parts.items():
        randomise(model)
        model.save_pretrained(folder / part)
    EulerDiscreteScheduler.from_config(scheduler.config).save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", dict(
        _class_name="StableDiffusionXLPipeline", _diffusers_version=diffusers.__version__, feature_extractor=[None, None],
        force_zeros_for_empty_prompt=True, image_encoder=[None, None], scheduler=["diffusers", "EulerDiscreteScheduler"],
        text_encoder=["transformers", "CLIPTextModel"], text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
        tokenizer=["transformers", "CLIPTokenizer"], tokenizer_2=["transformers", "CLIPTokenizer"],
        unet=["diffusers", "UNet2DConditionModel"], vae=["diffusers", "AutoencoderKL"],
    ))
    rename_text_keys(folder / "text_encoder/model.safetensors", case.as_published)


def read_base(base):
    """Reads a base back: what is expected is what diffusers makes of the files, not of the models they came from."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(base, torch_dtype=torch.float32, add_watermarker=False)
    pipeline.tokenizer = CLIPTokenizer.from_pretrained(base / "tokenizer")
    pipeline.tokenizer_2 = CLIPTokenizer.from_pretrained(base / "tokenizer_2")
    for model in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae):
        model.eval()
    return pipeline


def encode(pipeline, input_ids, input_ids_2):
    """The context (b, l, d) of each encoder, and the pooled text (b, p)."""
    first = pipeline.text_encoder(input_ids, output_hidden_states=True)
    second = pipeline.text_encoder_2(input_ids_2, output_hidden_states=True)
    return first.hidden_states[-2], second.hidden_states[-2], second.text_embeds


def write_parts(pipeline, folder):
    """What each part makes alone: token ids, text embeddings, posterior mean and std, decoded pictures, predictions."""
    down = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    ids, ids_2 = token_ids(pipeline.tokenizer, CAPTIONS), token_ids(pipeline.tokenizer_2, CAPTIONS)
    shown = torch.tensor([0, 4, 9, 12, 15])  # plain ones, "!" and "#" among them
    image = torch.rand(2, 3, 3 * down, 5 * down) * 2 - 1  # (b, 3, h, w) in [-1, 1]
    latents_in = torch.randn(2, 4, 3, 5)  # as the decoder takes them: not scaled
    unet_in = dict(
        unet_latents=torch.randn(3, 4, 4, 12), unet_timesteps=torch.tensor([999, 500, 1]),
        unet_context=torch.randn(3, 9, pipeline.unet.config.cross_attention_dim),
        unet_pooled=torch.randn(3, pipeline.text_encoder_2.config.projection_dim), unet_time_ids=torch.tensor(SIZES).float(),
    )
    with torch.no_grad():
        posterior = pipeline.vae.encode(image).latent_dist
        text, text_2, pooled = encode(pipeline, ids[shown], ids_2[shown])
        latents, timesteps, context, *added = unet_in.values()
        added = dict(zip(("text_embeds", "time_ids"), added))
        parts = unet_in | dict(
            caption_ids=ids, caption_ids_2=ids_2, input_ids=ids[shown], input_ids_2=ids_2[shown],
            text=text, text_2=text_2, pooled=pooled, image=image, vae_mean=posterior.mean, vae_std=posterior.std,
            latents_in=latents_in, decoded=pipeline.vae.decode(latents_in).sample,
            unet_prediction=pipeline.unet(latents, timesteps, context, added_cond_kwargs=added).sample,
        )
    save_file({key: value.contiguous() for key, value in parts.items()}, folder / "parts.safetensors")
    write_json(folder / "captions.json", CAPTIONS)


def inject(pipeline, case):
    """Adds LoRA to the U-Net and both text encoders. Returns kohya key -> factor, sorted, and kohya module -> alpha."""
    factors, alphas = {}, {}
    unread = case.text["num_hidden_layers"] - 1  # of the first encoder: nobody reads its last layer
    for prefix, model, targets, layers, (rank, alpha) in (
        ("lora_unet_", pipeline.unet, case.unet_targets, None, case.unet_rank_alpha),
        ("lora_te1_", pipeline.text_encoder, TEXT_TARGETS, list(range(unread)), case.text_rank_alpha),
        ("lora_te2_", pipeline.text_encoder_2, TEXT_TARGETS, None, case.text_2_rank_alpha),
    ):
        model.requires_grad_(False)
        inject_adapter_in_model(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, layers_to_transform=layers), model
        )
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            path, side = name.split(".lora_")
            if prefix == "lora_unet_":
                path = unet_module(path, pipeline.unet.config)
            else:
                path = "text_model." + path.removeprefix("text_model.")
            module = prefix + path.replace(".", "_")
            factors[f"{module}.lora_{'down' if side.startswith('A') else 'up'}.weight"] = parameter
            alphas[module] = alpha
    with torch.no_grad():
        for key, parameter in sorted(factors.items()):
            size = 0.1 if ".lora_up" in key else parameter.flatten(1).shape[1] ** -0.5
            parameter.copy_(torch.randn_like(parameter) * size)
    return dict(sorted(factors.items())), alphas


def make_batch(pipeline, case):
    """latents, noise (s, b, 4, h, w) f32; timesteps (s, b), input_ids, input_ids_2 (s, b, l) i64; time_ids (s, b, 6) f32."""
    shape = (STEPS, case.batch, 4, *case.latent_size)
    # Another caption for the second encoder than for the first, so that a mix-up shows.
    captions, captions_2 = (
        [BATCH_CAPTIONS[(step + item + shift) % len(BATCH_CAPTIONS)] for step in range(STEPS) for item in range(case.batch)]
        for shift in (0, 2)
    )
    timesteps = torch.randint(0, 1000, (STEPS, case.batch))
    timesteps[1, 0], timesteps[2, 1] = 999, 0  # both ends of the schedule
    time_ids = torch.randint(0, 4097, (STEPS, case.batch, 6)).float()
    time_ids[0] = torch.tensor(SIZES[:case.batch])
    rows = (STEPS, case.batch, TOKENS)
    return dict(
        latents=torch.randn(shape), noise=torch.randn(shape), timesteps=timesteps, time_ids=time_ids,
        input_ids=token_ids(pipeline.tokenizer, captions).view(rows).contiguous(),
        input_ids_2=token_ids(pipeline.tokenizer_2, captions_2).view(rows).contiguous(),
    )


def train(pipeline, factors, batch):
    """The training steps: prediction and gradients of the first, the loss of each, the factors after all."""
    schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
    optimizer = torch.optim.AdamW(
        factors.values(), lr=OPTIMIZER["learning_rate"], betas=tuple(OPTIMIZER["betas"]), eps=OPTIMIZER["eps"],
        weight_decay=OPTIMIZER["weight_decay"],
    )
    expected, losses = {}, []
    for step in range(STEPS):
        at = {key: value[step] for key, value in batch.items()}
        noisy = schedule.add_noise(at["latents"], at["noise"], at["timesteps"])
        text, text_2, pooled = encode(pipeline, at["input_ids"], at["input_ids_2"])
        prediction = pipeline.unet(
            noisy, at["timesteps"], torch.cat([text, text_2], -1),
            added_cond_kwargs=dict(text_embeds=pooled, time_ids=at["time_ids"]),
        ).sample
        velocity = schedule.config.prediction_type == "v_prediction"
        target = schedule.get_velocity(at["latents"], at["noise"], at["timesteps"]) if velocity else at["noise"]
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


def make(case, folder):
    """Writes one whole case into a folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(case.seed)
    write_base(case, folder / "base")
    pipeline = read_base(folder / "base")
    write_parts(pipeline, folder)
    factors, alphas = inject(pipeline, case)
    adapter = {key: parameter.detach().clone().contiguous() for key, parameter in factors.items()}
    adapter |= {f"{module}.alpha": torch.tensor(alpha) for module, alpha in alphas.items()}
    save_file(adapter, folder / "adapter.safetensors")
    batch = make_batch(pipeline, case)
    save_file(batch, folder / "batch.safetensors")
    expected = train(pipeline, factors, batch)
    save_file(expected, folder / "expected.safetensors")
    losses = expected["loss"].tolist()
    ranks = dict(unet=case.unet_rank_alpha, text_encoder=case.text_rank_alpha, text_encoder_2=case.text_2_rank_alpha)
    write_json(folder / "case.json", dict(
        kind=case.name, seed=case.seed, steps=STEPS, batch=case.batch, latent_size=case.latent_size,
        prediction_type=pipeline.scheduler.config.prediction_type,
        **{part: dict(zip(("rank", "alpha"), of_part)) for part, of_part in ranks.items()},
        optimizer=OPTIMIZER, factors=len(factors), first_loss=losses[0], last_loss=losses[-1],
    ))
    size_kb = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1000
    print(f"{case.name}: {len(factors)} factors, loss {losses[0]:.5f} -> {losses[-1]:.5f}, {size_kb:.0f} kB")


if __name__ == "__main__":
    main("Makes the golden cases of SDXL from diffusers + PEFT.", CASES, make)
