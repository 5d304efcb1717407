"""Random numbers of their own seed, on the device under test."""

import torch


def generator(seed: int) -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(seed)
