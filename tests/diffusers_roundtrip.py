"""Models to the diffusers library and back: same tensors, and the same samples from the same noise.

  python diffusers_roundtrip.py PATH/TO/ddim-engine

Needs torch, diffusers and safetensors; where they are missing, prints a line that begins with SKIPPED and exits 0.

1. The library makes small models with random weights, over its options, and saves them with a scheduler. The program samples the folder,
   imports it and exports it again: samples as the library's own loop makes them (largest difference over largest value at most 1e-4),
   tensors equal byte for byte, options equal.
2. The program trains a model and exports it. DDIMPipeline loads it and makes the program's samples.
"""
import copy
import json
import os
import subprocess
import sys
import tempfile
import time

try:
    import torch
    import diffusers
    from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
    from safetensors.torch import load_file, save_file
except ImportError as why:
    print(f"SKIPPED: the round trip with the diffusers library: {why}")
    sys.exit(0)

STEPS = 10
TOLERANCE = 1e-4
ENGINE = os.path.abspath(sys.argv[1])
WEIGHTS = "diffusion_pytorch_model.safetensors"

SMALL = dict(sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
             down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
CIFAR = dict(sample_size=16, block_out_channels=(12, 24, 24), layers_per_block=2, norm_num_groups=4, attention_head_dim=None,
             down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
             up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
             downsample_padding=0, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6)
CASES = {
    "small": (SMALL, DDIMScheduler, dict(beta_end=0.012)),
    "ddpm": (CIFAR, DDPMScheduler, dict(variance_type="fixed_large")),
    "velocity": (dict(SMALL, attention_head_dim=4, in_channels=1, out_channels=1), DDIMScheduler,
                 dict(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing",
                      clip_sample=False, beta_schedule="scaled_linear")),
    "resnet": (dict(SMALL, downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift",
                    attn_norm_num_groups=4), DDIMScheduler,
               dict(beta_schedule="squaredcos_cap_v2", set_alpha_to_one=False, steps_offset=1, clip_sample_range=1.5)),
    "image": (dict(SMALL, center_input_sample=True, add_attention=False, time_embedding_dim=48), DDIMScheduler,
              dict(prediction_type="sample", timestep_spacing="linspace", thresholding=True, clip_sample=False)),
    "fourier": (dict(SMALL, time_embedding_type="fourier"), DDIMScheduler, dict(timestep_spacing="trailing")),
}


def engine(*args):
    """Runs the program; its standard output."""
    done = subprocess.run([ENGINE, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"FAILED: ddim-engine {' '.join(map(str, args))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def library_samples(unet, scheduler, noise):
    """DDIMPipeline's loop, from noise that is given, without its way to pixels; in float64.

    Its float32 would differ by up to 1.5e-4 from that: where little of the signal is left, rounding is magnified.
    """
    scheduler = DDIMScheduler.from_config(scheduler.config)
    scheduler.set_timesteps(STEPS)
    x = noise.double()
    unet = copy.deepcopy(unet).double().eval()
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, eta=0.0).prev_sample
    return x


def our_samples(source, noise, place):
    """The program's samples from the same noise."""
    save_file({"noise": noise.contiguous()}, f"{place}/noise.safetensors")
    engine("sample", source, "--sampler", "ddim", "--steps", STEPS, "--noise", f"{place}/noise.safetensors",
           "--raw", f"{place}/raw.safetensors", "--out", f"{place}/samples.png", "--device", "cpu", "--precision", "fp32")
    return load_file(f"{place}/raw.safetensors")["images"]


def compare(name, got, want):
    error = ((got.double() - want).abs().max() / want.abs().max()).item()
    verdict = "ok" if error <= TOLERANCE else "FAILED"
    print(f"{name:<34} largest difference {error:.1e} of the largest value  {verdict}")
    return error <= TOLERANCE


def same_tensors(name, one, other):
    a, b = load_file(one), load_file(other)
    differ = sorted(set(a) ^ set(b)) + [n for n in set(a) & set(b) if a[n].dtype != b[n].dtype or not torch.equal(a[n], b[n])]
    print(f"{name:<34} {len(a)} tensors {'equal' if not differ else 'FAILED: ' + ', '.join(differ[:5])}")
    return not differ


def same_options(name, one, other, cls):
    a, b = cls.from_config(cls.load_config(one)), cls.from_config(cls.load_config(other))
    keys = [k for k in a.config if not k.startswith("_") and a.config[k] != b.config.get(k)]
    keys = [k for k in keys if list_of(a.config[k]) != list_of(b.config.get(k))]
    # Where nothing is clipped, the range means nothing.
    keys = [k for k in keys if not (k == "clip_sample_range" and not a.config["clip_sample"])]
    if keys:
        print(f"{name:<34} options FAILED: " + ", ".join(f"{k} {a.config[k]} {b.config.get(k)}" for k in keys))
    return not keys


def list_of(value):
    return list(value) if isinstance(value, (list, tuple)) else value


def randomised(options, seed):
    torch.manual_seed(seed)
    unet = UNet2DModel(**options)
    with torch.no_grad():
        for p in unet.parameters():
            p.add_(0.1 * torch.randn_like(p) * (p.std() if p.numel() > 1 and p.ndim > 1 else 1.0))
    return unet


def from_the_library(name, options, scheduler_class, settings, place):
    unet, scheduler = randomised(options, len(name)), scheduler_class(**settings)
    pipeline = DDPMPipeline if scheduler_class is DDPMScheduler else DDIMPipeline
    folder, run, back = f"{place}/library", f"{place}/run", f"{place}/back"
    pipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
    size = options["sample_size"]
    noise = torch.randn(3, unet.config.in_channels, size, size)
    want = library_samples(unet, scheduler, noise)
    good = [compare(f"{name}: sample FOLDER", our_samples(folder, noise, place), want)]
    engine("import", folder, "--out", run)
    engine("export", run, "--out", back)
    good.append(compare(f"{name}: sample RUN", our_samples(run, noise, place), want))
    good.append(same_tensors(f"{name}: import, export", f"{folder}/unet/{WEIGHTS}", f"{back}/unet/{WEIGHTS}"))
    good.append(same_options(name, f"{folder}/unet", f"{back}/unet", UNet2DModel))
    good.append(same_options(name, f"{folder}/scheduler", f"{back}/scheduler", scheduler_class))
    loaded = pipeline.from_pretrained(back)
    good.append(torch.equal(library_samples(loaded.unet, loaded.scheduler, noise), want))
    return all(good)


def old_names(place):
    """Attention as files before diffusers 0.15 have it, in half precision, and the network at the folder's top."""
    unet, scheduler = randomised(SMALL, 7), DDIMScheduler()
    folder = f"{place}/old"
    unet.save_pretrained(folder)
    scheduler.save_pretrained(folder)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, value in load_file(f"{folder}/{WEIGHTS}").items():
        value = value.half()
        for new, old in names.items():
            if f".{new}." in key:
                key = key.replace(f".{new}.", f".{old}.")
                value = value[:, :, None, None] if value.ndim == 2 else value
        tensors[key] = value.contiguous()
    save_file(tensors, f"{folder}/{WEIGHTS}")
    noise = torch.randn(2, 3, 16, 16)
    want = library_samples(unet.half().float(), scheduler, noise)
    return compare("old names, half precision", our_samples(folder, noise, place), want)


def from_the_program(place):
    run, folder = f"{place}/run", f"{place}/exported"
    settings = ["family=unet2d", "image_size=16", "unet.block_out_channels=16,32", "unet.norm_num_groups=4",
                "unet.down_block_types=DownBlock2D,AttnDownBlock2D", "unet.up_block_types=AttnUpBlock2D,UpBlock2D",
                "unet.attention_head_dim=8", "normalize=fixed", "schedule=squaredcos_cap_v2", "predict=velocity", "loss=mse",
                "batch_size=8", "sample_count=0", "ema_decay=0.9", "valid_fraction=0.01", "sample_clip=1.0", "min_snr_gamma=0"]
    sets = [word for setting in settings for word in ("--set", setting)]
    engine("train", "--run-dir", run, "--data", "debug", "--steps", 4, "--device", "cpu", "--precision", "fp32", "--quiet", *sets)
    engine("export", run, "--out", folder)
    pipeline = DDIMPipeline.from_pretrained(folder)
    noise = torch.randn(2, 3, 16, 16)
    want = library_samples(pipeline.unet, pipeline.scheduler, noise)
    good = compare("trained here, loaded there", our_samples(run, noise, place), want)
    index = json.load(open(f"{folder}/model_index.json"))
    return good and index["unet"] == ["diffusers", "UNet2DModel"]


def main():
    began = time.time()
    torch.set_num_threads(max(1, min(2, os.cpu_count() or 1)))
    good = True
    for name, (options, scheduler_class, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            good &= from_the_library(name, options, scheduler_class, settings, place)
    for test in (old_names, from_the_program):
        with tempfile.TemporaryDirectory() as place:
            good &= test(place)
    print(f"{'all equal' if good else 'FAILED'}: diffusers {diffusers.__version__}, torch {torch.__version__}, {time.time() - began:.0f} s")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
