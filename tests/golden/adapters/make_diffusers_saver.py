"""What diffusers' own saver writes, and the weight changes that its own model makes of it.

    python make_diffusers_saver.py ../sd1/base OUT_DIR

writes OUT_DIR/diffusers_saver.safetensors (as pytorch_lora_weights.safetensors) and diffusers_saver_delta.safetensors
(module path -> change). Made with diffusers 0.42.1, PEFT 0.21.2, transformers 5.23. Ranks and alphas differ between modules,
no alpha is a rank; the text encoder's names lack `text_model.`, as transformers 5 has it.
"""
import sys

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file

base, out = sys.argv[1:]
torch.manual_seed(1)
pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
block = "mid_block.attentions.0.transformer_blocks.0"
unet = LoraConfig(r=4, lora_alpha=3, rank_pattern={"attn2.to_k": 6}, alpha_pattern={"attn2.to_k": 5, "proj_in": 1}, target_modules=[
    f"{block}.attn1.to_q", f"{block}.attn2.to_k", f"{block}.attn1.to_out.0", "mid_block.attentions.0.proj_in", "down_blocks.0.resnets.0.conv1"])
text = LoraConfig(r=3, lora_alpha=8, use_rslora=True, target_modules=["layers.1.self_attn.q_proj", "layers.1.self_attn.out_proj"])
pipe.unet.add_adapter(unet)
pipe.text_encoder.add_adapter(text)
delta = {}
for component in ("unet", "text_encoder"):
    model = getattr(pipe, component)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    for name, module in model.named_modules():
        if getattr(module, "lora_A", None):
            delta[f"{component}.{name}"] = module.get_delta_weight("default").detach().contiguous()
layers = lambda model: convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
StableDiffusionPipeline.save_lora_weights(
    out, unet_lora_layers=layers(pipe.unet), text_encoder_lora_layers=layers(pipe.text_encoder), weight_name="diffusers_saver.safetensors",
    unet_lora_adapter_metadata=unet.to_dict(), text_encoder_lora_adapter_metadata=text.to_dict())
save_file(delta, f"{out}/diffusers_saver_delta.safetensors")
