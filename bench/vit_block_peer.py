#!/usr/bin/env python3
"""One ViT block on the CPU: agglo beside PyTorch and beside oneDNN's own matrix product, in one run.

    python3 -m venv VENV && VENV/bin/pip install torch numpy
    script/build release && VENV/bin/python bench/vit_block_peer.py [--threads 1,2] [--json FILE] [--repetitions N]

Both sides are processes that wait for a line and time one pass each, in turn, so that other work on the machine hits both alike. The block is pre-norm,
exact GELU, biases, no LayerScale; float32; `both` is forward and backward with gradients of the input and of every parameter, added to what stands there.

Rates count the products' operations only (backward twice the forward's). One thread is judged by processor time, the best of all repetitions, which
other work disturbs least; with more threads by wall time, best and median.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

SHAPE = {"batch": 8, "tokens": 197, "dim": 768, "heads": 12, "mlp": 3072}


def torch_worker(threads, shape):
    import time

    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(1)

    class Block(nn.Module):
        def __init__(self, dim, heads, mlp):
            super().__init__()
            self.heads = heads
            self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
            self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
            self.fc1, self.fc2 = nn.Linear(dim, mlp), nn.Linear(mlp, dim)

        def forward(self, x):
            b, n, d = x.shape
            q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
            x = x + self.proj(attended)
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    block = Block(shape["dim"], shape["heads"], shape["mlp"])
    x = torch.randn(shape["batch"], shape["tokens"], shape["dim"], requires_grad=True)
    d_y = torch.randn_like(x)
    a, w = torch.randn(x.shape[0] * x.shape[1], shape["dim"]), torch.randn(shape["mlp"], shape["dim"])

    def forward():
        # as in training: what backward needs is kept
        return block(x)

    def both():
        block(x).backward(d_y)

    def product():
        with torch.no_grad():
            F.linear(a, w)

    runs = {"forward": forward, "both": both, "product": product}
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(),
                      "product_flops": 2 * a.numel() * shape["mlp"]}), flush=True)
    for line in sys.stdin:
        wall, cpu = time.monotonic(), time.process_time()
        runs[line.strip()]()
        print(time.monotonic() - wall, time.process_time() - cpu, flush=True)


class Peer:
    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.header = json.loads(self.process.stdout.readline())

    def run(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        wall, cpu = self.process.stdout.readline().split()
        return float(wall), float(cpu)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(program, threads, repetitions):
    numbers = [str(v) for v in SHAPE.values()]
    peers = {
        "agglo": Peer([program, "cpu", str(threads)] + numbers),
        "torch": Peer([sys.executable, os.path.abspath(__file__), "--worker", str(threads)]),
    }
    times = {(peer, what): [] for peer in peers for what in ("forward", "both", "product")}
    for peer, what in times:
        peers[peer].run(what)
    for _ in range(repetitions):
        for peer, what in times:
            times[peer, what].append(peers[peer].run(what))
    flops = {"forward": peers["agglo"].header["forward_flops"], "both": 3 * peers["agglo"].header["forward_flops"]}
    rows = []
    for (peer, what), samples in times.items():
        # agglo's `product` is scaled to the block's operations
        n = flops.get(what) or (flops["forward"] if peer == "agglo" else peers["torch"].header["product_flops"])
        wall, cpu = [s[0] for s in samples], [s[1] for s in samples]
        rows.append({"threads": threads, "peer": "onednn" if (peer, what) == ("agglo", "product") else peer, "what": what,
                     "wall_ms_best": min(wall) * 1e3, "wall_ms_median": statistics.median(wall) * 1e3,
                     "cpu_ms_best": min(cpu) * 1e3, "gflops_wall": n / min(wall) * 1e-9,
                     "gflops_cpu": n / min(cpu) * 1e-9 * threads})
    headers = {name: peer.header for name, peer in peers.items()}
    for peer in peers.values():
        peer.close()
    return rows, headers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="build/release/bench/agglo_bench_vit_block")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--json")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        torch_worker(arguments.worker, SHAPE)
        return
    result = {"shape": SHAPE, "load_before": os.getloadavg(), "cores": os.cpu_count(), "rows": [], "ratios": [],
              "environment": {k: v for k, v in os.environ.items() if k.startswith(("OPENBLAS", "OMP", "MKL", "ONEDNN", "AGGLO"))}}
    for threads in (int(v) for v in arguments.threads.split(",")):
        rows, result["peers"] = compare(arguments.program, threads, arguments.repetitions)
        result["rows"] += rows
        at = {(r["peer"], r["what"]): r for r in rows}
        for what in ("forward", "both"):
            ours, theirs, best = at["agglo", what], at["torch", what], at["onednn", "product"]
            ratio = {"threads": threads, "what": what}
            for clock in ("wall", "cpu"):
                ratio[f"of_onednn_{clock}"] = ours[f"gflops_{clock}"] / best[f"gflops_{clock}"]
                ratio[f"torch_over_agglo_{clock}"] = theirs[f"{clock}_ms_best"] / ours[f"{clock}_ms_best"]
            ratio["torch_over_agglo_wall_median"] = theirs["wall_ms_median"] / ours["wall_ms_median"]
            result["ratios"].append(ratio)
    result["load_after"] = os.getloadavg()
    print(result["peers"], "load", result["load_before"], "to", result["load_after"])
    print(f"{'threads':>7} {'':8} {'':8} {'wall ms':>9} {'median':>9} {'cpu ms':>9} {'GFLOP/s':>9} {'of cpu':>9}")
    for r in result["rows"]:
        print(f"{r['threads']:7} {r['peer']:8} {r['what']:8} {r['wall_ms_best']:9.1f} {r['wall_ms_median']:9.1f} {r['cpu_ms_best']:9.1f}"
              f" {r['gflops_wall']:9.1f} {r['gflops_cpu']:9.1f}")
    for r in result["ratios"]:
        print(f"{r['threads']} threads, {r['what']}: {r['of_onednn_wall']:.0%} of oneDNN's product by wall time,"
              f" {r['of_onednn_cpu']:.0%} by processor time; PyTorch takes {r['torch_over_agglo_wall']:.2f} of agglo's wall time (medians"
              f" {r['torch_over_agglo_wall_median']:.2f}), {r['torch_over_agglo_cpu']:.2f} of its processor time")
    if arguments.json:
        with open(arguments.json, "w") as f:
            json.dump(result, f, indent=1)


main()
