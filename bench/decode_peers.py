#!/usr/bin/env python3
"""Random-resized crops of agglo and of its peers, in one run: the same encoded bytes, boxes and output size, one thread and two.

    decode_peers.py DATASET --agglo build/release/cli/agglo [--reps 5] [--json FILE]

DATASET is what `agglo ingest` makes. `agglo bench decode DATASET --boxes FILE` says where every picture's bytes stand and which box is
cut from it; without --agglo, boxes are drawn here (timm's random-resized crop) and only the peers are measured.

A view is: encoded bytes that are in memory already -> 8-bit RGB -> the box -> size x size by an antialiased bicubic filter. Two sets
are measured: all pictures, and those that are JPEG, for the peers that read nothing else. A peer that is not installed is listed as
missing. Every contender stays in processes of its own, held to as many CPUs as it has threads, and within a repetition they take turns.
One thread is compared by its processor time, which other work on the machine disturbs little; several by the time of day, for which the
machine should be idle.

--worker is how the script starts itself for one contender.
"""
import argparse
import io
import json
import math
import os
import pathlib
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

SIZE = 224
BATCH = 64  # of DALI, which works in batches


# ---- contenders: load() gives (versions, function of an item -> HWC or CHW array that is kept alive) ----

def load_pillow():
    import numpy as np
    import PIL
    from PIL import Image, features

    def view(item, data):
        x, y, w, h = item["box"]
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        return picture.crop((x, y, x + w, y + h)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}", view, np.asarray


def load_torchvision():
    import numpy as np
    import torch
    import torchvision
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import InterpolationMode, functional

    torch.set_num_threads(1)

    def view(item, data):
        x, y, w, h = item["box"]
        # a read-only buffer is what we want: nobody writes to it
        picture = decode_image(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
        return functional.resize(picture[:, y:y + h, x:x + w], [SIZE, SIZE], InterpolationMode.BICUBIC, antialias=True)
    return (f"torchvision {torchvision.__version__}, torch {torch.__version__}", view,
            lambda view: np.ascontiguousarray(view.permute(1, 2, 0).numpy()))


def load_opencv():
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    color = getattr(cv2, "IMREAD_COLOR_RGB", None)
    flags = (cv2.IMREAD_COLOR if color is None else color) | cv2.IMREAD_IGNORE_ORIENTATION

    def view(item, data):
        x, y, w, h = item["box"]
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        # no antialiased bicubic here: areas where the box shrinks, bicubic where it grows
        out = cv2.resize(picture[y:y + h, x:x + w], (SIZE, SIZE),
                         interpolation=cv2.INTER_AREA if w * h > SIZE * SIZE else cv2.INTER_CUBIC)
        return cv2.cvtColor(out, cv2.COLOR_BGR2RGB) if color is None else out
    return f"OpenCV {cv2.__version__}", view, np.asarray


def load_simplejpeg():
    import numpy as np
    import PIL
    import simplejpeg
    from PIL import Image

    def view(item, data):
        x, y, w, h = item["box"]
        # its fast modes are its defaults; they are another picture, by a level or two
        picture = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False)
        return Image.fromarray(picture[y:y + h, x:x + w]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return f"simplejpeg {simplejpeg.__version__}, Pillow {PIL.__version__}", view, np.asarray


def load_ffcv():
    """FFCV's own library, called as its decoder of random-resized crops calls it: libjpeg-turbo's fast integer DCT on the whole picture,
    then OpenCV's INTER_AREA. Its loader reads files of its own format only."""
    import importlib.metadata

    import numpy as np
    from ffcv import libffcv

    buffers = {}

    def view(item, data):
        x, y, w, h = item["box"]
        height, width = item["stored"]
        full = buffers.get("full")
        if full is None or full.size < height * width * 3:
            full = buffers["full"] = np.empty(height * width * 3, np.uint8)
        picture = full[:height * width * 3].reshape(height, width, 3)
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        libffcv.imdecode(np.frombuffer(data, np.uint8), picture, height, width, height, width, 0, 0, 1, 1, False, False)
        libffcv.resize_crop(picture, y, y + h, x, x + w, out)
        return out
    return f"FFCV {importlib.metadata.version('ffcv')}", view, np.asarray


def make_dali(items, blobs, n_threads):
    import numpy as np
    from nvidia.dali import fn, pipeline_def, types

    batches = [range(at, min(at + BATCH, len(items))) for at in range(0, len(items), BATCH)]
    encoded = [np.frombuffer(b, np.uint8) for b in blobs]
    anchor = [np.array(i["box"][:2], np.int32) for i in items]
    shape = [np.array(i["box"][2:], np.int32) for i in items]

    def source():
        while True:
            for batch in batches:
                yield [encoded[i] for i in batch], [anchor[i] for i in batch], [shape[i] for i in batch]

    @pipeline_def(batch_size=BATCH, num_threads=n_threads, device_id=None, prefetch_queue_depth=2)
    def crops():
        data, begin, extent = fn.external_source(source(), num_outputs=3, batch=True, no_copy=True)
        picture = fn.decoders.image_slice(data, begin, extent, axis_names="WH", normalized_anchor=False,
                                          normalized_shape=False, output_type=types.RGB, adjust_orientation=False)
        return fn.resize(picture, size=[SIZE, SIZE], interp_type=types.INTERP_CUBIC, antialias=True)

    pipeline = crops()
    pipeline.build()

    def one_pass(want):
        views = []
        for _ in batches:
            out = pipeline.run()[0]
            if len(views) < want:
                views += [np.array(out.at(i)) for i in range(len(out))]
        return views[:want]
    return one_pass


def load_dali():
    import nvidia.dali
    return f"DALI {nvidia.dali.__version__} (CPU)", None, None


# name: (loader, formats that it reads, remark)
PEERS = {
    "pillow": (load_pillow, {"jpeg", "png", "webp"}, ""),
    "torchvision": (load_torchvision, {"jpeg", "png", "webp"}, ""),
    "dali": (load_dali, {"jpeg", "png", "webp"}, "decodes the box only"),
    "opencv": (load_opencv, {"jpeg", "png", "webp"}, "another filter: area, or plain bicubic when it enlarges"),
    "simplejpeg": (load_simplejpeg, {"jpeg"}, "decoder only; resized by Pillow"),
    "ffcv": (load_ffcv, {"jpeg"}, "another filter: area; fast DCT"),
}


# ---- a worker: one process of one contender ----

def cpu_seconds():
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_utime + use.ru_stime


def worker(name, manifest):
    """Talks JSON lines: a list of item numbers and a number of threads in, times out. The items' bytes are read before."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to stderr
    work = json.loads(pathlib.Path(manifest).read_text())
    items, blobs, passes = work["items"], [], {}
    files = {}
    for item in items:
        file = files.setdefault(item["shard"], None) or open(item["shard"], "rb")
        files[item["shard"]] = file
        file.seek(item["offset"])
        blobs.append(file.read(item["bytes"]))
    try:
        version, view, pixels = PEERS[name][0]()
    except Exception as problem:  # whatever a foreign package raises when it is half there
        print(json.dumps({"missing": f"{type(problem).__name__}: {problem}".splitlines()[0]}), file=replies)
        return
    print(json.dumps({"version": version}), file=replies)
    for line in sys.stdin:
        order = json.loads(line)
        chosen, n_threads, want = order["items"], order["threads"], order["want"]
        key = (tuple(chosen), n_threads)
        os.sched_setaffinity(0, order["cpus"])
        reply = {}
        try:
            if view is None and key not in passes:
                passes[key] = make_dali([items[i] for i in chosen], [blobs[i] for i in chosen], n_threads)
            cpu, begin = cpu_seconds(), time.monotonic()
            if view is None:
                views = passes[key](want)
            else:
                views = []
                for n, i in enumerate(chosen):
                    out = view(items[i], blobs[i])
                    if n < want:
                        views.append(out)
            end = time.monotonic()
            reply = {"begin": begin, "end": end, "cpu": cpu_seconds() - cpu}
            if want:
                import numpy as np
                np.save(order["save"], np.stack([v if pixels is None else pixels(v) for v in views]))
        except Exception as problem:
            reply = {"failed": f"{type(problem).__name__}: {problem}".strip().splitlines()[0]}
        print(json.dumps(reply), file=replies)


class Contender:
    """One peer: a process per thread, but for DALI, which has threads of its own."""

    def __init__(self, name, manifest, n_processes):
        self.name, self.failed, self.version = name, None, None
        self.processes = []
        for _ in range(1 if name == "dali" else n_processes):
            p = subprocess.Popen([sys.executable, __file__, "--worker", name, str(manifest)], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1)
            self.processes.append(p)
            self.hear(p)

    def hear(self, p):
        line = p.stdout.readline()
        reply = json.loads(line) if line else {"failed": "the process died"}
        self.version = reply.get("version", self.version)
        self.failed = reply.get("missing") or reply.get("failed") or self.failed
        return reply

    def run(self, chosen, n_threads, cpus, want=0, save=None):
        """One pass -> (wall seconds, CPU seconds), or None when it failed."""
        n = min(n_threads, len(self.processes))
        for k in range(n):
            order = {"items": chosen[k::n], "threads": n_threads, "cpus": cpus, "want": want if k == 0 else 0, "save": save}
            self.processes[k].stdin.write(json.dumps(order) + "\n")
        replies = [self.hear(p) for p in self.processes[:n]]
        if self.failed:
            return None
        wall = max(r["end"] for r in replies) - min(r["begin"] for r in replies)
        return wall, sum(r["cpu"] for r in replies)

    def close(self):
        for p in self.processes:
            p.stdin.close()
            p.wait()


# ---- agglo ----

def find_rate(report, field):
    """Views per second in a report of agglo bench decode; dots in `field` go deeper."""
    for part in field.split("."):
        report = report[part]
    return float(report)


def run_agglo(options, dataset, n_threads, cpus, boxes=None):
    """-> (views per second, the report)"""
    command = [options.agglo, "bench", "decode", str(dataset), "--json", "--threads", str(n_threads), *options.agglo_args.split()]
    if boxes is not None:
        command += ["--boxes", str(boxes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cpus))
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}")
    report = json.loads(done.stdout)
    return find_rate(report, options.one_field if n_threads == 1 else options.all_field), report


# ---- sets of pictures ----

def sniff(head):
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    return "webp" if head[:4] == b"RIFF" else "?"


def draw_box(rng, width, height, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """timm's random-resized crop."""
    for _ in range(10):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= w <= width and 1 <= h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def stored_box(x, y, w, h, width, height, orientation):
    """A box of the upright picture, in the picture as stored (width x height)."""
    x1, y1, W, H = x + w, y + h, width, height
    return {1: (x, y, w, h), 2: (W - x1, y, w, h), 3: (W - x1, H - y1, w, h), 4: (x, H - y1, w, h), 5: (y, x, h, w),
            6: (y, H - x1, h, w), 7: (W - y1, H - x1, h, w), 8: (W - y1, x, h, w)}[orientation]


def list_members(dataset):
    items = []
    for shard in sorted((dataset / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for m in tar:
                if m.name.rsplit(".", 1)[-1] in ("jpg", "png", "webp"):
                    items.append({"shard": str(shard), "offset": m.offset_data, "bytes": m.size, "key": key_of(m.name)})
    return items


def read_items(options, dataset, scratch):
    """The pictures with their boxes as stored, their formats, and whether the boxes are agglo's."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    rng = random.Random(options.seed)
    if options.agglo:
        boxes = scratch / "boxes.jsonl"
        run_agglo(options, dataset, 1, cpu_list(1), boxes)
        items = [json.loads(line) for line in boxes.read_text().splitlines()]
    else:
        items = list_members(dataset)
    for item in items:
        shard = pathlib.Path(item["shard"])
        if not shard.exists():
            shard = dataset / "shards" / shard.name
        item["shard"] = str(shard)
        with open(shard, "rb") as file:
            file.seek(item["offset"])
            data = file.read(item["bytes"])
        item["format"] = sniff(data)
        picture = Image.open(io.BytesIO(data))
        width, height = picture.size
        orientation = picture.getexif().get(0x0112, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        if "w" not in item:
            upright = (height, width) if orientation >= 5 else (width, height)
            item["x"], item["y"], item["w"], item["h"] = draw_box(rng, *upright)
        item["stored"] = (height, width)
        item["box"] = stored_box(item["x"], item["y"], item["w"], item["h"], width, height, orientation)
        item["reduced"] = item["format"] == "jpeg" and min(item["w"], item["h"]) >= 2 * SIZE
    return items


def key_of(name):
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.split(".", 1)[0]


def make_jpeg_dataset(options, dataset, scratch):
    """The JPEG samples of a dataset as a dataset of their own: agglo measures whole ones."""
    for shard in sorted((dataset / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar, tarfile.open(scratch / shard.name, "w", format=tarfile.USTAR_FORMAT) as out:
            members = tar.getmembers()
            keep = {key_of(m.name) for m in members if m.name.endswith(".jpg")}
            for m in members:
                if key_of(m.name) in keep:
                    out.addfile(m, tar.extractfile(m))
    jpeg = scratch / "jpeg"
    subprocess.run([options.agglo, "ingest", str(scratch / "*.tar"), "--out", str(jpeg), "-q"], check=True, stdout=subprocess.DEVNULL)
    return jpeg


# ---- the run ----

def cpu_list(n):
    """The last n CPUs: the first one takes most interrupts."""
    return sorted(os.sched_getaffinity(0))[-n:]


def machine():
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} CPUs, Linux {platform.release()}"


def compare(views, reference):
    """How far a contender's views are from Pillow's, as mean and largest difference of levels."""
    import numpy as np
    d = np.abs(views.astype(int) - reference.astype(int))
    return round(float(d.mean()), 3), int(d.max())


def measure(options, contenders, items, datasets, scratch):
    rows = {}
    sets = {"all": list(range(len(items))), "jpeg": [i for i, item in enumerate(items) if item["format"] == "jpeg"]}
    formats = {item["format"] for item in items}
    if formats == {"jpeg"}:
        del sets["all"]
    reference = {}
    for name, c in contenders.items():  # warm-up, and what is compared
        for set_name, chosen in sets.items():
            if c.failed or (set_name == "all" and not formats <= PEERS[name][1]):
                continue
            file = scratch / f"{name}-{set_name}.npy"
            if c.run(chosen, 1, cpu_list(1), options.compare, str(file)) is None:
                print(f"{name} failed on {set_name}: {c.failed}", file=sys.stderr)
                continue
            import numpy as np
            views = np.load(file)
            reference.setdefault(set_name, views)
            rows[name, set_name] = {"compare": compare(views, reference[set_name]), "wall": {}, "cpu": {}}
            for n in options.threads[1:]:
                c.run(chosen, n, cpu_list(n))
    if options.agglo:
        for set_name in sets:
            rows["agglo", set_name] = {"compare": None, "wall": {}, "cpu": {}}
    for rep in range(options.reps):
        print(f"repetition {rep + 1} of {options.reps}", file=sys.stderr)
        turn = list(rows)
        turn = turn[rep % len(turn):] + turn[:rep % len(turn)]
        for n in options.threads:
            for name, set_name in turn:
                row = rows[name, set_name]
                if name == "agglo":
                    rate, _ = run_agglo(options, datasets[set_name], n, cpu_list(n))
                    # of one thread it counts the processor time, of several the time of day
                    row["cpu" if n == 1 else "wall"].setdefault(n, []).append(rate)
                    continue
                done = contenders[name].run(sets[set_name], n, cpu_list(n))
                if done is not None:
                    row["wall"].setdefault(n, []).append(len(sets[set_name]) / done[0])
                    row["cpu"].setdefault(n, []).append(len(sets[set_name]) / done[1])
    return rows, {k: len(v) for k, v in sets.items()}


def median(values):
    return round(statistics.median(values), 1) if values else None


def show(value, form):
    return "" if value is None else format(value, form)


def report(options, contenders, rows, n_items, n_reduced):
    out = {"machine": machine(), "load": os.getloadavg()[0], "size": SIZE, "reps": options.reps,
           "boxes": "agglo" if options.agglo else "drawn here", "pictures": n_items, "reduced": n_reduced, "rows": [], "missing": {}}
    for (name, set_name), row in rows.items():
        for n in sorted(row["wall"].keys() | row["cpu"].keys()):
            wall, cpu = row["wall"].get(n, []), row["cpu"].get(n, [])
            out["rows"].append({"contender": name, "version": contenders[name].version if name in contenders else options.version,
                                "set": set_name, "threads": n, "views_per_s": median(wall), "worst": round(min(wall), 1) if wall else None,
                                "best": round(max(wall), 1) if wall else None, "views_per_cpu_s": median(cpu),
                                "from_pillow": row["compare"], "remark": PEERS[name][2] if name in PEERS else ""})

    # one thread is compared by processor time, several by the time of day
    figure = {1: "views_per_cpu_s"}
    agglo = {(r["set"], r["threads"]): r[figure.get(r["threads"], "views_per_s")] for r in out["rows"] if r["contender"] == "agglo"}
    for r in out["rows"]:
        base, own = agglo.get((r["set"], r["threads"])), r[figure.get(r["threads"], "views_per_s")]
        r["of_agglo"] = round(own / base, 2) if base and own else None
    for name, c in contenders.items():
        if c.failed:
            out["missing"][name] = c.failed
    print(f"{out['machine']}, load {out['load']:.1f}\nviews of {SIZE} x {SIZE}, median of {options.reps}; "
          "off: mean and largest difference from Pillow's pixels\n")
    print(f"{'set':5} {'threads':>7}  {'contender':12} {'per CPU s':>9} {'views/s':>8} {'worst':>8} {'best':>8} {'of agglo':>8} {'off':>11}  version")
    for r in sorted(out["rows"], key=lambda r: (r["set"], r["threads"], -(r[figure.get(r["threads"], "views_per_s")] or 0))):
        off = "" if r["from_pillow"] is None else "{:.2f} {:3d}".format(*r["from_pillow"])
        remark = f" ({r['remark']})" if r["remark"] else ""
        print(f"{r['set']:5} {r['threads']:7}  {r['contender']:12} {show(r['views_per_cpu_s'], '.1f'):>9} {show(r['views_per_s'], '.1f'):>8} "
              f"{show(r['worst'], '.1f'):>8} {show(r['best'], '.1f'):>8} {show(r['of_agglo'], '.2f'):>8} {off:>11}  {r['version']}{remark}")
    for set_name, n in n_items.items():
        print(f"{set_name}: {n} pictures" + (f"; agglo decodes {n_reduced} of their JPEGs at a reduced scale" if options.agglo else ""))
    for name, why in out["missing"].items():
        print(f"missing: {name}: {why}")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(out, indent=1) + "\n")


def main():
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dataset", type=pathlib.Path)
    parser.add_argument("--agglo", help="the program; without it only the peers are measured")
    parser.add_argument("--agglo-args", default="--seconds 1 --limit 100000", help="options of agglo bench decode")
    parser.add_argument("--one-field", default="one_thread.views.images_per_s", help="where its report has the views per second of one thread")
    parser.add_argument("--all-field", default="all_threads.views.images_per_s", help="the same of several")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--compare", type=int, default=64, help="views to compare with Pillow's")
    parser.add_argument("--seed", type=int, default=0, help="of boxes that are drawn here")
    parser.add_argument("--json", help="write the figures to this file")
    options = parser.parse_args()
    options.version = None
    available = len(os.sched_getaffinity(0))
    options.threads = [n for n in options.threads if n <= available]
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        datasets = {"all": options.dataset}
        if options.agglo:
            options.agglo = shutil.which(options.agglo) or sys.exit(f"{options.agglo} is no program")
            options.version = subprocess.run([options.agglo, "--version"], stdout=subprocess.PIPE, text=True).stdout.split("\n")[0]
            datasets["jpeg"] = make_jpeg_dataset(options, options.dataset, scratch)
        items = read_items(options, options.dataset, scratch)
        manifest = scratch / "manifest.json"
        manifest.write_text(json.dumps({"items": items}))
        contenders = {name: Contender(name, manifest, max(options.threads)) for name in options.peers}
        try:
            rows, n_items = measure(options, contenders, items, datasets, scratch)
            report(options, contenders, rows, n_items, sum(item["reduced"] for item in items))
        finally:
            for c in contenders.values():
                c.close()


if __name__ == "__main__":
    main()
