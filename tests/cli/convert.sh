# Pickles are refused with the command that converts them, and that command converts them.
python=${AGGLO_PYTHON:-python3}

# what the program says needs no Python
printf 'PK\003\004' >a.pth && head -c 2000 /dev/zero >>a.pth
expect 1 "a PyTorch archive (a zip with a pickle in it), which is not read: convert it once with script/convert-weights a.pth OUT.safetensors" "$agglo" inspect weights a.pth
printf '\200\002}q\000' >b.bin && head -c 2000 /dev/zero >>b.bin
expect 1 "a pickle of PyTorch's, which is not read: convert it once with script/convert-weights b.bin" "$agglo" inspect weights b.bin
mkdir repository && cp b.bin repository/pytorch_model.bin
expect 1 "no safetensors file but pytorch_model.bin, a pickle: convert it once with script/convert-weights" "$agglo" inspect weights repository

"$python" -c 'import torch, safetensors' 2>/dev/null || skip "the conversion itself: $python has no torch and safetensors"

convert() { "$python" "$root/script/convert-weights" "$@"; }
"$agglo" weights init dinov2 --set dim=32 --set depth=2 --set patch=4 --set image=16 --seed 3 --out plain.safetensors >/dev/null
cat >make.py <<'PYTHON' # TorchScript wants its source in a file
import torch
from safetensors.torch import load_file

plain = load_file("plain.safetensors")
torch.save(plain, "flat.pth")
torch.save(plain, "old.pth", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, "state_dict": {"module." + k: v for k, v in plain.items()}}, "wrapped.pt")
torch.save({"teacher": {"backbone." + k: v for k, v in plain.items()}, "iteration": 7}, "teacher.pth")
torch.save({"deep": {"er": plain}}, "deep.pth")
# a stray tensor beside the model, and another copy of it
torch.save({"model": plain, "ema_decay": torch.tensor(0.999), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "stray.pth")
torch.save({"model": {"state_dict": plain}, "state_dict": {}, "step": torch.tensor(7)}, "nested.pth")
torch.save({**plain, "extra": {"w": torch.ones(2)}}, "mixed.pth")
loop = {"model": {}}
loop["model"]["model"] = loop
torch.save(loop, "loop.pth")
tied = dict(plain)
tied["layernorm.bias"] = tied["layernorm.weight"]
torch.save(tied, "tied.pth")


class Holder(torch.nn.Module):
    def forward(self, x):
        return x


holder = Holder()
for name, tensor in plain.items():
    at = holder
    for part in name.split(".")[:-1]:
        if not hasattr(at, part):
            at.add_module(part, Holder())
        at = getattr(at, part)
    at.register_buffer(name.split(".")[-1], tensor)
torch.jit.script(holder).save("script.pt")


class Hostile:
    def __reduce__(self):
        import os

        return (os.mkdir, ("was-run",))


torch.save({"state_dict": plain, "hostile": Hostile()}, "hostile.pth")
torch.save([1, 2], "list.pth")
PYTHON
"$python" make.py 2>/dev/null || fail "the files to convert were not made"

cat >check.py <<'PYTHON' # the bytes, names without what wraps them
import sys
from safetensors.torch import load_file

plain, found = load_file("plain.safetensors"), load_file("out.safetensors")
prefix = sys.argv[1]
if len(sys.argv) > 2:
    plain["layernorm.bias"] = plain["layernorm.weight"]
assert set(found) == {prefix + k for k in plain}, set(found) ^ {prefix + k for k in plain}
for name, tensor in plain.items():
    other = found[prefix + name]
    assert other.dtype == tensor.dtype and other.shape == tensor.shape, name
    assert other.numpy().tobytes() == tensor.numpy().tobytes(), name
assert not (plain["layernorm.weight"] == 0).all()
PYTHON
same_tensors() { "$python" check.py "$@" 2>stderr || fail "not the tensors that were saved: $(tail -n 1 stderr)"; }

tensors_of() { "$agglo" inspect weights "$1" --json >json && value json arch && value json model_parameters; }
tensors_of plain.safetensors >expected
for name in flat.pth old.pth wrapped.pt teacher.pth script.pt stray.pth nested.pth; do
  expect 1 "script/convert-weights $name" "$agglo" inspect weights "$name"
  convert "$name" out.safetensors >stdout || fail "$name was not converted"
  tensors_of out.safetensors >found
  same expected found
  case $name in
  wrapped.pt) same_tensors module. ;;
  teacher.pth) same_tensors backbone. ;;
  *) same_tensors "" ;;
  esac
done
convert stray.pth out.safetensors >stdout && grep -q "passed by, with tensors: ema_decay, optimizer" stdout || fail "stray.pth: $(cat stdout)"
convert mixed.pth out.safetensors >stdout 2>stderr && fail "mixed.pth holds tensors that were left out"
grep -q "there are tensors beside tensors, in extra: --key" stderr || fail "mixed.pth: $(cat stderr)"
(umask 027 && convert flat.pth mode.safetensors >stdout) && [ "$(stat -c %a mode.safetensors)" = 640 ] || fail "mode $(stat -c %a mode.safetensors)"
(umask 002 && convert flat.pth mode.safetensors >stdout) && [ "$(stat -c %a mode.safetensors)" = 664 ] || fail "mode $(stat -c %a mode.safetensors)"
convert wrapped.pt out.safetensors | grep -q "left out, no tensors" && fail "nothing was left out beside the state_dict's tensors"
"$agglo" inspect weights out.safetensors >text && grep -q 'under "module."' text || fail "the wrapping is not shown: $(cat text)"
convert deep.pth out.safetensors >stdout 2>stderr && fail "deep.pth names no key that is followed"
grep -q -- "--key" stderr || fail "deep.pth: $(cat stderr)"
convert deep.pth out.safetensors --key deep.er >stdout || fail "--key"
tensors_of out.safetensors >found && same expected found
same_tensors ""
convert tied.pth out.safetensors >stdout || fail "tensors that share memory"
tensors_of out.safetensors >found && same expected found
same_tensors "" tied

# nothing is run, nothing is written
rm -f out.safetensors
for name in hostile.pth list.pth loop.pth a.pth none.pth; do
  convert "$name" out.safetensors >stdout 2>stderr && fail "$name was converted"
  [ "$(wc -l <stderr)" = 1 ] || fail "$name: $(cat stderr)"
  [ ! -e out.safetensors ] && [ ! -e was-run ] || fail "$name left something"
done
