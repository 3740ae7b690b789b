"""Makes variants.safetensors: changes of a weight in every form, and what PEFT (LoHa, LoKr, DoRA by row) or torch's own operations
make of them.

    python make_variants.py OUT.safetensors        (PEFT 0.21, torch 2)

For each case MODULE: `MODULE.<leaf>` as files with kohya keys have them, `weight.MODULE`, and `delta.MODULE`, the change at
strength 1. All factors are random, alpha is never the rank.
"""
import sys
import torch
import torch.nn.functional as F
from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file

torch.manual_seed(3)
out = {}


def layers():
    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(12, 20)
            self.conv = torch.nn.Conv2d(6, 8, 3)
            self.pointwise = torch.nn.Conv2d(6, 8, 1)
    return Layers().requires_grad_(False)


def from_peft(prefix, config, names, rename=lambda n: n, alpha=3.0):
    model = layers()
    config.target_modules = names
    inject_adapter_in_model(config, model)
    for _, p in model.named_parameters():
        if p.requires_grad:
            p.data = torch.randn_like(p) * 0.5 + (0.7 if p.dim() == 1 else 0)
    for name in names:
        layer = getattr(model, name)
        # The layer's name tells the kernel of a convolution, as it does in files.
        module = f"lora_unet_{prefix}_{name}" + ("1" if name == "conv" else "")
        before = layer.get_base_layer().weight.data.clone()
        for key, value in layer.named_parameters():
            if "default" not in key:
                continue
            leaf = rename(key.replace(".default", "").replace("default", ""))
            # PEFT keeps the row lengths of a convolution as (1, out, 1, 1); files have (out, 1, 1, 1).
            is_rows = leaf == "dora_scale" and value.dim() == 4
            out[f"{module}.{leaf}"] = value.data.transpose(0, 1).clone() if is_rows else value.data.clone()
        layer.merge()
        out[f"weight.{module}"] = before
        out[f"delta.{module}"] = layer.get_base_layer().weight.data - before
        out[f"{module}.alpha"] = torch.tensor(alpha)


every = ["linear", "conv", "pointwise"]
from_peft("loha", LoHaConfig(r=2, alpha=3), every)
from_peft("loha_high", LoHaConfig(r=5, alpha=3), ["linear", "conv"])  # 25 is above the shorter side
from_peft("loha_tucker", LoHaConfig(r=2, alpha=3, use_effective_conv2d=True), ["conv"])
from_peft("lokr", LoKrConfig(r=2, alpha=3), ["linear"])
from_peft("lokr", LoKrConfig(r=1, alpha=3), ["conv", "pointwise"])
from_peft("lokr_both", LoKrConfig(r=1, alpha=3, decompose_both=True, decompose_factor=4), ["linear"])
# No side is a product: alpha counts for nothing in LyCORIS and in programs that load files. PEFT would scale by alpha / r.
from_peft("lokr_whole", LoKrConfig(r=50, alpha=50), every, alpha=3.0)
from_peft("lokr_tucker", LoKrConfig(r=1, alpha=3, use_effective_conv2d=True, decompose_factor=2), ["conv"])
dora = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
from_peft("dora", LoraConfig(r=2, lora_alpha=3, use_dora=True), every,
          lambda n: dora.get(n, "dora_scale" if "magnitude" in n else n))

# LoCon in Tucker form: what the three convolutions make of each unit picture is the kernel.
down, mid, up = torch.randn(2, 6, 1, 1), torch.randn(2, 2, 3, 3), torch.randn(8, 2, 1, 1)
unit = torch.zeros(6 * 9, 6, 3, 3)
for i in range(6 * 9):
    unit.view(6 * 9, -1)[i, i] = 1
module = "lora_unet_tucker_conv1"
seen = F.conv2d(F.conv2d(F.conv2d(unit, down), mid), up)
out |= {f"{module}.lora_down.weight": down, f"{module}.lora_mid.weight": mid, f"{module}.lora_up.weight": up,
        f"{module}.alpha": torch.tensor(3.0), f"weight.{module}": torch.randn(8, 6, 3, 3),
        f"delta.{module}": (3 / 2 * seen.view(6, 3, 3, 8)).permute(3, 0, 1, 2).contiguous()}

# DoRA by column, as the paper and A1111 have it.
for name, shape in [("linear", (20, 12)), ("conv1", (8, 6, 3, 3))]:
    module = f"lora_unet_dora_column_{name}"
    rest = [1] * (len(shape) - 2)
    down, up = torch.randn(2, *shape[1:]), torch.randn(shape[0], 2, *rest)
    weight, magnitude = torch.randn(shape), torch.rand(1, shape[1], *rest) + 0.5
    changed = weight + 3 / 2 * (up.flatten(1) @ down.flatten(1)).view(shape)
    norm = changed.transpose(0, 1).flatten(1).norm(dim=1).view(1, shape[1], *rest)
    out |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up, f"{module}.alpha": torch.tensor(3.0),
            f"{module}.dora_scale": magnitude, f"weight.{module}": weight,
            f"delta.{module}": magnitude * changed / norm - weight}

# The difference itself.
weight, bias = torch.randn(8, 6, 3, 3), torch.randn(8)
out |= {"lora_unet_full_conv1.diff": weight, "lora_unet_full_conv1.diff_b": bias, "delta.lora_unet_full_conv1": weight.clone(),
        "weight.lora_unet_full_conv1": torch.randn(8, 6, 3, 3)}
save_file({k: v.float().contiguous().clone() for k, v in out.items()}, sys.argv[1])
