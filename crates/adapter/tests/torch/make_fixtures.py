"""Writes the PyTorch files beside this script that tests/torch_file.rs reads. Needs torch; nothing in them is large.

    python make_fixtures.py
"""

import os
import pathlib
from collections import OrderedDict

import torch

FOLDER = pathlib.Path(__file__).parent


def stable_diffusion():
    """A state dict as checkpoints of Stable Diffusion have it, with the kinds of tensor that occur in them."""
    weight = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 4 - 1
    shared = torch.arange(10, dtype=torch.float32)
    state = OrderedDict(
        [
            ("weight", weight),
            ("weight_transposed", weight.t()),  # the same storage, read by columns
            ("half", (torch.arange(6) - 2.5).to(torch.float16).reshape(2, 3)),
            ("bfloat", torch.tensor([1.0, -2.5, 3e38]).to(torch.bfloat16)),
            ("double", torch.tensor([[0.5, -1e10]], dtype=torch.float64)),
            ("position_ids", torch.arange(7).expand(1, -1)),
            ("tail", shared[6:]),
            ("every_third", shared[1::3]),
            ("scalar", torch.tensor(0.75)),
            ("empty", torch.zeros(0, 3)),
            ("mask", torch.tensor([True, False, True])),
            ("conv_channels_last", torch.arange(24.0).reshape(1, 4, 2, 3).to(memory_format=torch.channels_last)),
            ("parameter", torch.nn.Parameter(torch.tensor([2.0, -3.0]))),
            ("num_batches", 3),
        ]
    )
    state._metadata = OrderedDict([("", {"version": 1})])  # pickled as a BUILD of the dictionary
    return {
        "epoch": 8,
        "global_step": 470000,
        "pytorch-lightning_version": "1.4.2",
        "learning_rate": 0.5,
        "state_dict": state,
        "callbacks": {"seen": {1, 2}, "best": None, "big": 1 << 80, "size": torch.Size([2, 3])},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}],
    }


class Malicious:
    def __reduce__(self):
        return os.system, ("echo this must never be printed",)


def main():
    torch.save(stable_diffusion(), FOLDER / "stable_diffusion.ckpt")
    torch.save({"state_dict": {"w": torch.ones(2)}, "global_step": Malicious()}, FOLDER / "malicious.ckpt")
    pair = [torch.tensor([[1.0, 2.0]]), torch.tensor([3, 4], dtype=torch.int32)]
    torch.save(pair, FOLDER / "list_protocol_4.pt", pickle_protocol=4)
    for file in sorted(FOLDER.glob("*.*t")):
        print(file.name, file.stat().st_size)


if __name__ == "__main__":
    main()
