#!/usr/bin/env python3
"""Compares full-size teachers with PyTorch on random weights. Takes minutes and some gigabytes; needs torch, transformers, open_clip, safetensors, numpy.

    script/build release teacher_outputs
    python3 tests/parity/teachers/full_size.py [--build build/release] [--dinov2 DIR] [NAME...]

Prints max|a - b| / max|b| of summary and spatial for every case and fails above 1e-4. NAMEs choose among the cases below; --dinov2 is a folder with
facebookresearch/dinov2's package, without which the hub's cases are left out. Weights of the transformers cases are written by `agglo weights init` and
loaded by transformers under their own names; the others are torch's, written under OpenCLIP's and the hub's names.
"""

import argparse
import os
import subprocess
import sys
import tempfile

import numpy
import torch
from safetensors.torch import load_file, save_file

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..")
sys.path.insert(0, os.path.join(ROOT, "script", "fixtures"))
from make_layout_fixtures import grid_of, hub_class, scramble  # noqa: E402
from make_teacher_fixtures import CLIP_STATS, IMAGENET_STATS, pixels_of, prepare  # noqa: E402


def init(args, arch, path):
    subprocess.run([args.agglo, "-q", "weights", "init", arch, "--seed", "1", "--out", path], check=True)
    return load_file(path)


def clip_transformers(args, arch, folder, fields):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    path = os.path.join(folder, "model.safetensors")
    weights = init(args, arch, path)
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(hidden_act="quick_gelu", **fields)).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if "position_ids" not in name]
    assert not missing and not unexpected, (missing, unexpected)
    vision = getattr(model, "vision_model", model)

    def run(x):
        hidden = vision(x).last_hidden_state
        normed = vision.post_layernorm(hidden)
        return model.visual_projection(normed[:, 0]), normed[:, 1:]

    return path, run, CLIP_STATS


def clip_open(args, folder, fields):
    import open_clip

    config = dict(embed_dim=512, quick_gelu=True, vision_cfg=fields,
                  text_cfg=dict(context_length=8, vocab_size=60, width=64, heads=1, layers=1))
    model = open_clip.CLIP(**config).eval()
    scramble(model, 2)
    path = os.path.join(folder, "open_clip_model.safetensors")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    with open(os.path.join(folder, "open_clip_config.json"), "w") as f:
        import json

        json.dump(dict(model_cfg=config), f)
    model.visual.output_tokens = True
    return path, model.visual, CLIP_STATS


def dinov2_transformers(args, arch, folder, fields):
    from transformers import Dinov2Config, Dinov2Model

    path = os.path.join(folder, "model.safetensors")
    init(args, arch, path)
    Dinov2Config(image_size=518, patch_size=14, **fields).save_pretrained(folder)
    model, info = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    model.eval()
    assert not info["missing_keys"] and not info["unexpected_keys"], info

    def run(x):
        hidden = model(x).last_hidden_state
        return hidden[:, 0], hidden[:, 1:]

    return path, run, IMAGENET_STATS


def dinov2_hub(args, folder, registers):
    from functools import partial

    sys.path.insert(0, args.dinov2)
    kind = hub_class()
    from dinov2.layers import MemEffAttention, NestedTensorBlock

    model = kind(registers, img_size=518, patch_size=14, embed_dim=768, depth=12, num_heads=12, mlp_ratio=4, init_values=1.0,
                 block_chunks=0, block_fn=partial(NestedTensorBlock, attn_class=MemEffAttention)).eval()
    scramble(model, 3)
    path = os.path.join(folder, "hub.safetensors")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path, model.outputs, IMAGENET_STATS


B16 = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=224, patch_size=16,
           projection_dim=512)
L14 = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224, patch_size=14,
           projection_dim=768)
OPEN_B16 = dict(image_size=224, layers=12, width=768, patch_size=16)
VITB = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12)

CASES = {
    "clip-vit-base-16": (lambda a, d: clip_transformers(a, "clip-vit-base-16", d, B16), 2, (224, 224), 16),
    "clip-vit-base-16-open": (lambda a, d: clip_open(a, d, OPEN_B16), 2, (224, 224), 16),
    "clip-vit-large-14": (lambda a, d: clip_transformers(a, "clip-vit-large-14", d, L14), 1, (224, 224), 14),
    "dinov2-base": (lambda a, d: dinov2_transformers(a, "dinov2-base", d, VITB), 1, (518, 518), 14),
    "dinov2-base-hub": (lambda a, d: dinov2_hub(a, d, 0), 1, (518, 518), 14),
    "dinov2-base-hub-224": (lambda a, d: dinov2_hub(a, d, 0), 1, (224, 224), 14),
    "dinov2-base-reg-hub-224": (lambda a, d: dinov2_hub(a, d, 4), 1, (224, 224), 14),
}


def distance(a, b):
    return float(numpy.abs(a - b).max() / numpy.abs(b).max())


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--build", default=os.path.join(ROOT, "build", "release"))
    parser.add_argument("--dinov2")
    args = parser.parse_args()
    args.agglo = os.path.join(args.build, "cli", "agglo")
    tool = os.path.join(args.build, "tests", "parity", "teachers", "teacher_outputs")
    bad = False
    for name in args.names or CASES:
        make, batch, (height, width), patch = CASES[name]
        if "hub" in name and not args.dinov2:
            print(f"{name}: left out, --dinov2 is not given")
            continue
        with tempfile.TemporaryDirectory() as folder:
            path, model, stats = make(args, folder)
            pixels = pixels_of(torch.Generator().manual_seed(7), batch, height, width)
            numpy.save(os.path.join(folder, "pixels.npy"), pixels.numpy())
            summary, tokens = model(prepare(pixels, stats))
            spatial = grid_of(tokens, height, width, patch)
            subprocess.run([tool, path, os.path.join(folder, "pixels.npy"), os.path.join(folder, "out")], check=True)
            a = distance(numpy.load(os.path.join(folder, "out.summary.npy")), summary.numpy())
            b = distance(numpy.load(os.path.join(folder, "out.spatial.npy")), spatial.numpy())
            print(f"{name} at {width} x {height}: summary {a:.1e}, spatial {b:.1e}", flush=True)
            bad |= not (a < 1e-4 and b < 1e-4)
    sys.exit("full_size: a difference is above 1e-4" if bad else 0)


if __name__ == "__main__":
    main()
