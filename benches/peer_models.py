"""The networks of the presets in PyTorch, stated apart from the engine, and how pictures are noised: what the peer scripts measure.

`build_network` is the family seed, `build_unet2d` the public diffusers library's `UNet2DModel`. Whether they are the engine's networks is
not taken on trust: `peer_child.py` writes a reference file of them, which `ddim-engine check` replays before anything is timed.

Everything is built in functions, so that importing this file does not import torch. Needs torch; `build_unet2d` needs diffusers as well.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


def build_network(channels: int = 3, embedding_dim: int = 32, widths: tuple[int, ...] = (32, 64, 96, 128),
                  depth: int = 2) -> nn.Module:
    """The seed's U-Net: (noisy pictures [B,C,H,W], variance [B]) -> prediction [B,C,H,W].

    Module names are those of the reference files. Built in a function, so that importing this file does not import torch.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn

    class ResidualBlock(nn.Module):
        """A 1x1 convolution of x, plus norm, 3x3, SiLU, 3x3."""

        def __init__(self, before: int, after: int) -> None:
            super().__init__()
            self.batch_norm1 = nn.BatchNorm2d(before, eps=1e-5, momentum=0.1)
            self.conv1 = nn.Conv2d(before, after, kernel_size=3, padding=1)
            self.conv2 = nn.Conv2d(after, after, kernel_size=3, padding=1)
            self.conv_res = nn.Conv2d(before, after, kernel_size=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = F.silu(self.conv1(self.batch_norm1(x)))
            return self.conv2(hidden) + self.conv_res(x)

    def level(inputs: list[int], after: int) -> nn.Module:
        """One resolution: a residual block for each entry of `inputs`, all of width `after`."""
        holder = nn.Module()
        holder.resnet_blocks = nn.ModuleList(ResidualBlock(before, after) for before in inputs)
        return holder

    class Unet(nn.Module):
        """Residual blocks down and up the resolutions; each block on the way down feeds one on the way up."""

        def __init__(self) -> None:
            super().__init__()
            entering = [2 * embedding_dim, *widths[:-1]]
            leaving = [*reversed(widths[:-1]), embedding_dim]
            bottom = widths[-1]
            self.down_blocks = nn.ModuleList(
                level([first] + [width] * (depth - 1), width) for first, width in zip(entering, widths))
            self.mid_blocks = nn.ModuleList([ResidualBlock(bottom, 2 * bottom), ResidualBlock(2 * bottom, bottom)])
            self.up_blocks = nn.ModuleList(
                level([2 * width] + [out + width] * (depth - 1), out) for width, out in zip(reversed(widths), leaving))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skips = []
            for down in self.down_blocks:
                for block in down.resnet_blocks:
                    x = block(x)
                    skips.append(x)
                x = F.avg_pool2d(x, kernel_size=2)
            for block in self.mid_blocks:
                x = block(x)
            for up in self.up_blocks:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
                for block in up.resnet_blocks:
                    x = block(torch.cat((x, skips.pop()), dim=1))
            return x

    class SeedNetwork(nn.Module):
        """Stem, noise embedding, U-Net and a head that starts at zero."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(channels, embedding_dim, kernel_size=1)
            self.unet = Unet()
            self.conv_out = nn.Conv2d(embedding_dim, channels, kernel_size=1)
            nn.init.zeros_(self.conv_out.weight)
            nn.init.zeros_(self.conv_out.bias)
            count = embedding_dim // 2
            octaves = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
            self.register_buffer("frequencies", (2 * math.pi * 1000.0**octaves).float(), persistent=False)

        def forward(self, noisy: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
            phase = torch.outer(variance, self.frequencies)
            embedding = torch.cat((phase.sin(), phase.cos()), dim=1)
            x = self.conv(noisy)
            # Written out in x's memory format: a broadcast view would turn the whole first level back to NCHW.
            planes = torch.empty_like(x).copy_(embedding[:, :, None, None])
            return self.conv_out(self.unet(torch.cat((x, planes), dim=1)))

    return SeedNetwork()


def cosine_rates(times: torch.Tensor, low: float = 0.02, high: float = 0.95) -> tuple[torch.Tensor, torch.Tensor]:
    """Times [B] in [0, 1] -> (signal, noise) rates [B], whose squares add to one."""
    first, last = math.acos(high), math.acos(low)
    angle = first + (last - first) * times
    return angle.cos(), angle.sin()


def build_unet2d(config: dict[str, Any]) -> nn.Module:
    """diffusers' network with the options of a preset: (noisy pictures [B,C,H,W], timesteps [B]) -> prediction [B,C,H,W]."""
    import torch
    from diffusers import UNet2DModel

    options = {key: value for key, value in config["unet"].items() if value != "none"}
    network = UNet2DModel(sample_size=config["image_size"], in_channels=config["channels"], out_channels=config["channels"], **options)

    class Called(torch.nn.Module):
        """The network without the wrapper of its result."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
            return self.network(noisy, timesteps, return_dict=False)[0]

    return Called()


def build_of(config: dict[str, Any]) -> nn.Module:
    """The network of a preset's settings, whose family says what its second argument is."""
    if config["family"] == "unet2d":
        return build_unet2d(config)
    return build_network(config["channels"], config["embedding_dim"], tuple(config["widths"]), config["block_depth"])


def named_state(network: nn.Module) -> dict[str, Any]:
    """Parameters and running statistics by the names that reference files have: `param.NAME` and `buffer.NAME`."""
    found = {f"param.{name}": tensor for name, tensor in network.named_parameters()}
    found |= {f"buffer.{name}": tensor for name, tensor in network.named_buffers() if name.endswith(("running_mean", "running_var"))}
    return {name.replace(".network.", ".", 1): tensor for name, tensor in found.items()}


def scheduler_options(config: dict[str, Any]) -> dict[str, Any]:
    """The preset's schedule and sampler as options of diffusers' `DDIMScheduler`."""
    kinds = {"noise": "epsilon", "velocity": "v_prediction", "image": "sample"}
    return {"num_train_timesteps": config["train_timesteps"], "beta_schedule": config["schedule"], "beta_start": config["beta_start"],
            "beta_end": config["beta_end"], "prediction_type": kinds[config["predict"]],
            "timestep_spacing": config["sample_spacing"], "clip_sample": config["sample_clip"] > 0}


class Diffusion:
    """Draws times, gives the rates at them, and tells the network's second argument and what it shall predict."""

    def __init__(self, config: dict[str, Any], device: torch.device | str = "cpu") -> None:
        self.config, self.device = config, device
        self.bars: torch.Tensor | None = None
        if config["family"] == "unet2d":
            from diffusers import DDIMScheduler

            self.bars = DDIMScheduler(**scheduler_options(config)).alphas_cumprod.to(device)
        elif config["schedule"] != "cosine":
            raise ValueError(f"schedule {config['schedule']}: the peer's family seed has the cosine alone")

    def draw(self, batch: int) -> torch.Tensor:
        """Times [B]: in [0, 1], or timesteps."""
        import torch

        if self.bars is None:
            return torch.rand(batch, device=self.device)
        return torch.randint(0, len(self.bars), (batch,), device=self.device)

    def rates(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Times [B] -> (signal, noise) rates [B]."""
        if self.bars is not None:
            bar = self.bars[times]
            return bar.sqrt(), (1 - bar).sqrt()
        return cosine_rates(times, self.config["min_signal_rate"], self.config["max_signal_rate"])

    def told(self, times: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What the network is told beside the picture: the noise's variance, or the timestep."""
        return sigma.square() if self.bars is None else times

    def target(self, images: torch.Tensor, noise: torch.Tensor, signal: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """What the network shall predict; rates [B,1,1,1]."""
        if self.config["predict"] == "noise":
            return noise
        return signal * noise - sigma * images if self.config["predict"] == "velocity" else images

    def split(self, predicted: torch.Tensor, noisy: torch.Tensor, signal: torch.Tensor,
              sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A prediction -> (noise, picture); rates [B,1,1,1]."""
        if self.config["predict"] == "noise":
            return predicted, (noisy - sigma * predicted) / signal
        if self.config["predict"] == "velocity":
            return sigma * noisy + signal * predicted, signal * noisy - sigma * predicted
        return (noisy - signal * predicted) / sigma, predicted
