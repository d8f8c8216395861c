# SIGKILL at any moment, then the same command again: the same bytes as an undisturbed run, and never a partial file under its name.
pictures source 12
recipe recipe.yaml
"$agglo" ingest source/train.tar --out data/train --shard-samples 10 >/dev/null
"$agglo" ingest source/val.tar --out data/val >/dev/null
"$agglo" teach recipe.yaml >/dev/null
"$agglo" train recipe.yaml --out run >/dev/null

# killed MILLISECONDS COMMAND...: run a command, kill it after that long; true when it was killed
killed() {
  local after=$1 pid status=0
  shift
  "$@" >/dev/null 2>&1 &
  pid=$!
  sleep "$(awk -v ms="$after" 'BEGIN { printf "%.3f", ms / 1000 }')"
  kill -9 $pid 2>/dev/null || true
  wait $pid 2>/dev/null || status=$?
  [ $status -eq 137 ]
}

rm -rf other
mkdir other
n=0
for after in 5 11 17 23 31 43 61 87 120; do
  killed $after "$agglo" ingest source/train.tar --out other/train --shard-samples 10 && n=$((n + 1))
done
"$agglo" ingest source/train.tar --out other/train --shard-samples 10 >/dev/null
[ $n -gt 0 ] || fail "ingest was never caught"
same data/train/shards other/train/shards
same data/train/index.bin other/train/index.bin
[ -z "$(find other -name '.tmp-*')" ] || fail "ingest left temporary files: $(find other -name '.tmp-*')"

recipe again.yaml
sed -i 's/^cache: cache/cache: other\/cache/' again.yaml
n=0
for after in 3 7 14 20 30 37 45 52 60 68 75 90 110 140 180; do
  killed $after "$agglo" teach again.yaml --threads 1 && n=$((n + 1))
  # a manifest that exists says that its unit is complete
  for manifest in other/cache*/*/main-*.json; do
    [ -e "$manifest" ] || continue
    unit=${manifest%.json}.lmdb
    cmp -s "$unit" "${unit#other/}" ||
      fail "$manifest stands beside a partial unit"
  done
done
"$agglo" teach again.yaml >/dev/null
[ $n -gt 0 ] || fail "teach was never caught"
find other -name '.tmp-*' -delete
rm -f other/cache*/datasets.json cache*/datasets.json
same cache other/cache
same cache-val other/cache-val

n=0
for after in 8 20 40 60 90 130 170 210 260 330 420; do
  killed $after "$agglo" train recipe.yaml --out run2 --threads 2 && n=$((n + 1))
done
"$agglo" train recipe.yaml --out run2 >/dev/null
[ $n -gt 0 ] || fail "train was never caught"
same run/student.safetensors run2/student.safetensors
[ "$(wc -l <run2/metrics.jsonl)" = "$(wc -l <run/metrics.jsonl)" ] || fail "metrics of a resumed run: $(cat run2/metrics.jsonl)"

# a project that moves goes on where it was; other pictures under the same recipe do not
mkdir moved
cp -r data cache cache-val recipe.yaml moved/
killed 200 "$agglo" train recipe.yaml --out moved/run --set train.checkpoint_every=1 || true
"$agglo" train moved/recipe.yaml --out moved/run >/dev/null
same run/student.safetensors moved/run/student.safetensors
"$agglo" train moved/recipe.yaml --out moved/run --json >again.json
[ "$(value again.json up_to_date)" = true ] || fail "a finished run is not known after a move"
expect 1 "recipe" "$agglo" train recipe.yaml --out run --set dataset=data/val --set cache=cache-val

# SIGTERM: a checkpoint, one line, exit status 1, and the next start goes on from there
"$agglo" train recipe.yaml --out run3 --set train.steps=100000 --set train.checkpoint_every=100000 >/dev/null 2>stderr &
pid=$!
for i in $(seq 200); do [ -s run3/metrics.jsonl ] && break; sleep 0.05; done
kill -TERM $pid
status=0
wait $pid || status=$?
[ $status = 1 ] || fail "SIGTERM gave exit status $status"
grep -q 'stopped by signal' stderr || fail "SIGTERM said: $(cat stderr)"
ls run3/checkpoint-*.safetensors >/dev/null || fail "SIGTERM left no checkpoint"
[ ! -e run3/student.safetensors ] || fail "a stopped run has final weights"

# stopped COMMAND...: SIGTERM while it runs ends it with exit status 1 and one line
stopped() {
  local status=0
  "$@" >stdout 2>stderr &
  pid=$!
  for i in $(seq 500); do # until it has its handler: bit 14 of the signals caught
    [ $((0x$(awk '/^SigCgt/ { print $2 }' /proc/$pid/status) & 0x4000)) -eq 0 ] || break
    sleep 0.02
  done
  sleep 0.2
  kill -TERM $pid
  wait $pid || status=$?
  [ $status = 1 ] || fail "SIGTERM gave exit status $status to '$*': $(cat stderr)"
  [ "$(grep -c '^agglo: .*stopped by signal' stderr)" = 1 ] || fail "'$*' said: $(cat stderr)"
}

# waiting for standard input, too
mkfifo pipe
sleep 100 >pipe &
writer=$!
stopped "$agglo" ingest - --out data/never <pipe
kill $writer
[ ! -e data/never/dataset.json ] || fail "a stopped ingest left a dataset"
# in the middle of matrix products: their code moves the stack pointer, and no signal may write there
"$agglo" weights init vit-small-16 --set image=224 --out slow.safetensors >/dev/null
for i in 1 2 3 4; do
  stopped "$agglo" -q eval knn --train data/train --val data/val --weights slow.safetensors
done
