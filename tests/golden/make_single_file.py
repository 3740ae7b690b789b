#!/usr/bin/env python3
"""Writes the golden bases once more as single files in the original layout of CompVis and Stability.

    python make_single_file.py [--out DIR] [--only sd1|sd2|sdxl|sdxl-v]

Reads DIR/{sd1,sd2,sdxl,sdxl-v}/base and writes single-file.safetensors beside it, f32, with what real checkpoints hold
besides the model: schedule buffers, an averaged copy, the autoencoder's loss; for sd2 the last layer of OpenCLIP, which
Stable Diffusion 2 does not use; for sdxl-v the empty tensors that tell its prediction and schedule. The names are spelled here
from the layout itself; before a file is written, diffusers' own conversion must bring back every tensor of the folder to
the bit.
"""
import argparse
import json
import re
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

SEEDS = {"sd1": 301, "sd2": 302, "sdxl": 303, "sdxl-v": 304}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {
    "group_norm": "norm", "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out", "to_q": "q", "to_k": "k",
    "to_v": "v", "to_out.0": "proj_out",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
OPEN_CLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}


def read_part(base, part):
    """A part's config and weights."""
    path, = (base / part).glob("*.safetensors")
    return json.loads((base / part / "config.json").read_text()), load_file(path)


def unet_module(path, config):
    """A module of the U-Net under its original name. A level is layers_per_block resnets and a change of size."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    if path in UNET_ENDS:
        return UNET_ENDS[path]
    place, kind, index, rest = re.fullmatch(r"(mid_block|\w+_blocks\.\d+)\.(\w+)\.(\d+)\.(.+)", path).groups()
    index = int(index)
    if kind == "resnets":
        rest = UNET_RESNET[rest]
    if place == "mid_block":  # resnet, attention, resnet
        return f"middle_block.{1 if kind == 'attentions' else 2 * index}.{rest}"
    level = int(place.split(".")[1])
    if kind == "downsamplers":  # an entry of its own, after the level's resnets
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
    if kind == "upsamplers":  # the last place in the entry of the level's last resnet
        has_attention = config["up_block_types"][level].startswith("CrossAttn")
        assert level < levels - 1
        return f"output_blocks.{level * (layers + 1) + layers}.{2 if has_attention else 1}.conv"
    slot = 1 if kind == "attentions" else 0
    if place.startswith("down"):
        return f"input_blocks.{1 + level * (layers + 1) + index}.{slot}.{rest}"
    return f"output_blocks.{level * (layers + 1) + index}.{slot}.{rest}"  # one resnet more than on the way down


def vae_module(path, levels):
    """A module of the autoencoder under its original name. The decoder's levels count from the smallest picture."""
    path = path.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    path = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", path)
    path = re.sub(r"mid_block\.attentions\.0\.(.+)", lambda found: f"mid.attn_1.{VAE_ATTENTION[found[1]]}", path)
    path = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", path)
    path = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", path)
    path = re.sub(r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", path)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", path)


def original_unet(base):
    config, weights = read_part(base, "unet")
    return {
        f"model.diffusion_model.{unet_module(path, config)}.{kind}": value
        for (path, _, kind), value in ((key.rpartition("."), value) for key, value in weights.items())
    }


def original_vae(base):
    config, weights = read_part(base, "vae")
    made = {}
    for key, value in weights.items():
        path, _, kind = key.rpartition(".")
        path = vae_module(path, len(config["block_out_channels"]))
        if ".attn_1." in path and value.dim() == 2:
            value = value[:, :, None, None]  # a 1x1 convolution
        made[f"first_stage_model.{path}.{kind}"] = value
    return made


def original_clip(base):
    """transformers' own names, behind a prefix."""
    _, weights = read_part(base, "text_encoder")
    return {f"cond_stage_model.transformer.{key}": value for key, value in weights.items()}


def open_clip(config, weights):
    """OpenCLIP's names: query, key and value in one matrix."""
    made = {OPEN_CLIP_ENDS[key]: weights[key] for key in OPEN_CLIP_ENDS}
    for layer in range(config["num_hidden_layers"]):
        source, target = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            fused = [weights[f"{source}.self_attn.{side}_proj.{kind}"] for side in "qkv"]
            made[f"{target}.attn.in_proj_{kind}"] = torch.cat(fused)  # (3 d, d) or (3 d)
            for name, original in OPEN_CLIP.items():
                made[f"{target}.{original}.{kind}"] = weights[f"{source}.{name}.{kind}"]
    return made


def original_open_clip(base):
    """OpenCLIP, and what follows the layer that Stable Diffusion 2 reads."""
    config, weights = read_part(base, "text_encoder")
    d, layers = config["hidden_size"], config["num_hidden_layers"]
    made = open_clip(config, weights)
    first = "transformer.resblocks.0."
    for key in [key for key in made if key.startswith(first)]:  # the layer that is there and not used
        made[f"transformer.resblocks.{layers}.{key.removeprefix(first)}"] = torch.randn_like(made[key])
    made |= dict(text_projection=torch.randn(d, d), logit_scale=torch.tensor(4.6052))
    return {f"cond_stage_model.model.{key}": value for key, value in made.items()}


def original_sdxl_text(base):
    """Both text encoders: transformers' names, always with "text_model.", and OpenCLIP with x @ text_projection."""
    _, first = read_part(base, "text_encoder")
    names = {key: f"text_model.{key.removeprefix('text_model.')}" for key in first}
    made = {f"conditioner.embedders.0.transformer.{names[key]}": value for key, value in first.items()}
    positions = torch.arange(first[next(key for key in first if key.endswith("position_embedding.weight"))].shape[0])
    made["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = positions[None]
    config, second = read_part(base, "text_encoder_2")
    second = {key.removeprefix("text_model."): value for key, value in second.items()}
    with_projection = open_clip(config, second) | dict(
        text_projection=second["text_projection.weight"].T, logit_scale=torch.tensor(4.6055)
    )
    return made | {f"conditioner.embedders.1.model.{key}": value for key, value in with_projection.items()}


def markers(base):
    """Empty tensors that say what the network predicts, as authors of SDXL checkpoints add them."""
    config = json.loads((base / "scheduler/scheduler_config.json").read_text())
    told = dict(v_pred=config["prediction_type"] == "v_prediction", ztsnr=config["rescale_betas_zero_snr"])
    return {key: torch.empty(0) for key, is_so in told.items() if is_so}


def schedule_buffers(base):
    """The schedule as the original program keeps it; what zero terminal SNR makes infinite is left out."""
    schedule = DDPMScheduler.from_pretrained(base / "scheduler")
    kept = schedule.alphas_cumprod
    buffers = dict(
        betas=schedule.betas, alphas_cumprod=kept, alphas_cumprod_prev=torch.cat([torch.ones(1), kept[:-1]]),
        sqrt_alphas_cumprod=kept.sqrt(), sqrt_one_minus_alphas_cumprod=(1 - kept).sqrt(),
        log_one_minus_alphas_cumprod=(1 - kept).log(), sqrt_recip_alphas_cumprod=(1 / kept).sqrt(),
        sqrt_recipm1_alphas_cumprod=(1 / kept - 1).sqrt(),
    )
    return {key: value.float() for key, value in buffers.items() if value.isfinite().all()}


def extras(unet):
    """What a reader must pass over: an averaged copy (a few of its tensors, other numbers) and a loss."""
    made = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(421)}
    for key in sorted(unet)[:6]:
        made["model_ema." + key.removeprefix("model.").replace(".", "")] = torch.randn_like(unet[key])
    return made | {
        "first_stage_model.loss.logvar": torch.tensor(0.0),
        "first_stage_model.loss.discriminator.main.0.weight": torch.randn(4, 3, 4, 4),
        "first_stage_model.loss.discriminator.main.0.bias": torch.randn(4),
    }


def diffusers_parts(whole, base):
    """part -> weights as diffusers' own conversion reads them."""
    unet_config, vae_config = read_part(base, "unet")[0], read_part(base, "vae")[0]
    text_2 = {}
    if (base / "text_encoder_2").exists():
        encoder = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(base / "text_encoder_2"))
        prefix = "conditioner.embedders.1.model."
        text_2 = dict(text_encoder_2=single_file_utils.convert_open_clip_checkpoint(encoder, whole, prefix))
        text = single_file_utils.convert_ldm_clip_checkpoint(whole)
    elif single_file_utils.is_open_clip_model(whole):
        text_encoder = CLIPTextModel(CLIPTextConfig.from_pretrained(base / "text_encoder"))
        text = single_file_utils.convert_open_clip_checkpoint(text_encoder, whole)
    else:
        text = single_file_utils.convert_ldm_clip_checkpoint(whole)
    return text_2 | dict(
        unet=single_file_utils.convert_ldm_unet_checkpoint(whole, unet_config),
        vae=single_file_utils.convert_ldm_vae_checkpoint(whole, vae_config), text_encoder=text,
    )


def check(whole, base):
    """Every tensor of the folder comes back to the bit. Returns how many."""
    new_names = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
    num_checked = 0
    for part, found in diffusers_parts(whole, base).items():
        found = {key.removeprefix("text_model."): value for key, value in found.items()}
        for key, value in read_part(base, part)[1].items():
            for old, new in new_names.items() if part == "vae" else ():
                key = key.replace(old, new)
            if not torch.equal(found.pop(key.removeprefix("text_model.")), value):
                raise SystemExit(f"{base}: {part} {key} differs")
            num_checked += 1
        # diffusers knows the unused layer by the number that it has in the published files.
        passed_over = ("encoder.layers.2.", "text_projection", "embeddings.position_ids")
        unused = [key for key in found if not key.startswith(passed_over)]
        if part not in ("text_encoder", "text_encoder_2") and found or unused:
            raise SystemExit(f"{base}: {part} has more than the folder: {sorted(found)}")
    return num_checked


def make(folder):
    """Writes one single file."""
    base = folder / "base"
    torch.manual_seed(SEEDS[folder.name])
    unet = original_unet(base)
    if folder.name.startswith("sdxl"):
        whole = unet | original_vae(base) | original_sdxl_text(base) | markers(base)
    else:
        text = original_clip(base) if folder.name == "sd1" else original_open_clip(base)
        whole = unet | original_vae(base) | text | schedule_buffers(base) | extras(unet)
    num_checked = check(whole, base)
    path = folder / "single-file.safetensors"
    save_file({key: value.contiguous() for key, value in whole.items()}, path)
    path.chmod(0o644)
    print(f"{folder.name}: {len(whole)} tensors, {path.stat().st_size / 1000:.0f} kB; {num_checked} checked to the bit")


def main():
    parser = argparse.ArgumentParser(description="Writes the golden bases as single files in the original layout.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder that holds the cases")
    parser.add_argument("--only", choices=list(SEEDS))
    options = parser.parse_args()
    for name in SEEDS:
        if options.only in (None, name):
            make(options.out / name)


if __name__ == "__main__":
    main()
