#!/usr/bin/env python3
"""A whole teacher on the CPU: agglo beside PyTorch (transformers, scaled_dot_product_attention), in one run.

    python3 -m venv VENV && VENV/bin/pip install torch transformers numpy
    script/build release && VENV/bin/python bench/teacher_peer.py [--arch clip-vit-base-16] [--threads 1,2] [--batches 1,8] [--repetitions N] [--json FILE]

Both sides are processes that wait for a line and run one batch each, in turn, so that other work on the machine hits both alike. Random weights, float32, the
architecture that agglo calls so; u8 pixels to normalised input are agglo's work and not PyTorch's, whose input is ready. DINOv2's position table is at 224 pixels
already, as agglo resamples it once and transformers would at each batch. PyTorch runs under inference_mode.

One thread is judged by processor time, the best of all repetitions; more threads by wall time, best and median.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

CLIP = {  # hidden, layers, heads, patch, projection, MLP, activation: as agglo's registry has them
    "clip-vit-base-32": (768, 12, 12, 32, 512, 3072, "quick_gelu"), "clip-vit-base-16": (768, 12, 12, 16, 512, 3072, "quick_gelu"),
    "clip-vit-large-14": (1024, 24, 16, 14, 768, 4096, "quick_gelu"), "clip-vit-huge-14": (1280, 32, 16, 14, 1024, 5120, "gelu"),
}
DINOV2 = {"dinov2-small": (384, 12, 6), "dinov2-base": (768, 12, 12), "dinov2-large": (1024, 24, 16)}


def torch_worker(arch, threads, batch, compiled):
    import time

    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(1)
    if arch in CLIP:
        dim, depth, heads, patch, projection, mlp, act = CLIP[arch]
        config = transformers.CLIPVisionConfig(
            hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, patch_size=patch, projection_dim=projection,
            intermediate_size=mlp, image_size=224, hidden_act=act)
        config._attn_implementation = "sdpa"
        model = transformers.CLIPVisionModelWithProjection(config).eval()

        def run(x):
            out = model(pixel_values=x)
            return out.image_embeds, model.vision_model.post_layernorm(out.last_hidden_state[:, 1:])
    else:
        dim, depth, heads = DINOV2[arch]
        config = transformers.Dinov2Config(hidden_size=dim, num_hidden_layers=depth, num_attention_heads=heads, patch_size=14, image_size=224)
        config._attn_implementation = "sdpa"
        model = transformers.Dinov2Model(config).eval()

        def run(x):
            out = model(pixel_values=x).last_hidden_state
            return out[:, 0], out[:, 1:]
    if compiled:
        run = torch.compile(run)
    x = torch.randn(batch, 3, 224, 224)
    print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}), flush=True)
    with torch.inference_mode():
        for _ in sys.stdin:
            wall, cpu = time.monotonic(), time.process_time()
            run(x)
            print(time.monotonic() - wall, time.process_time() - cpu, flush=True)


class Peer:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.header = json.loads(self.process.stdout.readline())

    def run(self):
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        wall, cpu = self.process.stdout.readline().split()
        return float(wall), float(cpu)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(options, threads, batch):
    worker = [sys.executable, os.path.abspath(__file__), "--worker", "--arch", options.arch, "--threads", str(threads), "--batches", str(batch)]
    peers = {
        "agglo": Peer([options.program, "-q", "bench", "teacher", "--lines", "--device", "cpu", "--arch", options.arch, "--size", "224",
                       "--threads", str(threads), "--batch", str(batch)]),
        "torch": Peer(worker + (["--compile"] if options.compile else [])),
    }
    times = {name: [] for name in peers}
    for name in peers:
        peers[name].run()
        peers[name].run()
    for _ in range(options.repetitions):
        for name in times:
            times[name].append(peers[name].run())
    gmac = peers["agglo"].header["gmac"]
    rows = []
    for name, samples in times.items():
        wall, cpu = [s[0] for s in samples], [s[1] for s in samples]
        rows.append({"threads": threads, "batch": batch, "peer": name, "images_per_s_best": batch / min(wall),
                     "images_per_s_median": batch / statistics.median(wall), "images_per_cpu_s": batch / min(cpu) * threads,
                     "gflops_cpu": 2 * gmac * batch / min(cpu) * threads})
    headers = {name: peer.header for name, peer in peers.items()}
    for peer in peers.values():
        peer.close()
    return rows, headers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/release/cli/agglo")
    parser.add_argument("--arch", default="clip-vit-base-16", choices=[*CLIP, *DINOV2])
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model")
    parser.add_argument("--json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        torch_worker(options.arch, int(options.threads), int(options.batches), options.compile)
        return
    result = {"arch": options.arch, "load_before": os.getloadavg(), "cores": os.cpu_count(), "rows": []}
    for threads in (int(v) for v in options.threads.split(",")):
        for batch in (int(v) for v in options.batches.split(",")):
            rows, result["peers"] = compare(options, threads, batch)
            result["rows"] += rows
            for r in rows:
                print(f"{r['threads']} threads, batch {r['batch']:2}: {r['peer']:6} {r['images_per_s_best']:7.2f} images/s best,"
                      f" {r['images_per_s_median']:7.2f} median, {r['images_per_cpu_s']:7.2f} by processor time,"
                      f" {r['gflops_cpu']:7.1f} GFLOP/s", flush=True)
            ours, theirs = rows
            ratios = {k: ours[k] / theirs[k] for k in ("images_per_s_best", "images_per_s_median", "images_per_cpu_s")}
            result.setdefault("ratios", []).append({"threads": threads, "batch": batch, **ratios})
            print(f"  agglo / PyTorch: {ratios['images_per_s_best']:.2f} best, {ratios['images_per_s_median']:.2f} median,"
                  f" {ratios['images_per_cpu_s']:.2f} by processor time", flush=True)
    result["load_after"] = os.getloadavg()
    print(result["peers"], "load", result["load_before"], "to", result["load_after"])
    if options.json:
        with open(options.json, "w") as f:
            json.dump(result, f, indent=1)


main()
