# Bad input: one clear line, the exit status of the contract, nothing else lost.
pictures source 9
recipe recipe.yaml
n=$(ls source/train/*.png | wc -l)

# a missing source costs itself
expect 3 "" "$agglo" ingest source/train.tar missing.tar --out data/train --shard-samples 20 --json
[ "$(value stdout samples_kept)" = "$n" ] || fail "a missing shard cost others"
[ "$(value stdout shards_failed)" = 1 ] || fail "the missing shard is not counted"
grep -q 'missing.tar' data/train/rejects.jsonl || fail "the missing shard is not named"
expect 2 "" "$agglo" ingest 'none-*.tar' --out data/none
[ ! -e data/none ] || fail "nothing was to be started"

# a truncated one keeps what stands before the cut
head -c $(($(stat -c %s source/train.tar) / 2 + 100)) source/train.tar >cut.tar
expect 3 "" "$agglo" ingest cut.tar source/val.tar --out data/cut --json
kept=$(value stdout samples_kept)
[ "$kept" -gt $((n / 3)) ] || fail "the truncated shard lost more than its end"
grep -q 'cut.tar' data/cut/rejects.jsonl || fail "the truncated shard is not named"

# a broken picture costs itself, with a reason
cp -r source/val broken
first=$(ls broken/*.png | head -n 1)
head -c 600 "$first" >short && mv short "$first"
printf '<html>not found</html>' >broken/zzz.jpg
(cd broken && tar -cf ../broken.tar -- *)
expect 0 "" "$agglo" ingest broken.tar --out data/broken --json
[ "$(value stdout samples_rejected)" = 2 ] || fail "rejected: $(cat stdout)"
[ "$(wc -l <data/broken/rejects.jsonl)" = 2 ] || fail "rejects: $(cat data/broken/rejects.jsonl)"
grep -q '"zzz"' data/broken/rejects.jsonl || fail "rejects: $(cat data/broken/rejects.jsonl)"

"$agglo" ingest source/val.tar --out data/val >/dev/null

# recipes: file, line, the key, the nearest known one
expect 2 "did you mean 'steps'?" "$agglo" train recipe.yaml --out run --set train.step=5
recipe bad.yaml 'los: {cos: 1}'
expect 2 "bad.yaml:11" "$agglo" teach bad.yaml
grep -q "did you mean 'loss'?" stderr || fail "no suggestion: $(cat stderr)"
expect 2 "(" "$agglo" train recipe.yaml --out run --set 'views.scale=[0.5, 0.1]'
expect 2 "train.lr" "$agglo" train recipe.yaml --out run --set train.lr=fast
expect 2 "no-such.yaml" "$agglo" train no-such.yaml --out run
expect 2 "the recipe has no teacher 'clipp', did you mean 'clip'?" "$agglo" teach recipe.yaml --teacher clipp
expect 2 "codec" "$agglo" teach recipe.yaml --set teachers.clip.codec=zip
[ ! -e cache ] && [ ! -e run ] || fail "a bad recipe started something"

# weights: missing, truncated, lying offsets, not a teacher
weights=$root/weights/clip-tiny.safetensors
expect 1 "no-such.safetensors" "$agglo" teach recipe.yaml --set teachers.clip.weights=no-such.safetensors
head -c 100000 "$weights" >cut.safetensors
expect 1 "cut.safetensors" "$agglo" inspect weights cut.safetensors
sed 's/"data_offsets":\[0,/"data_offsets":[8,/' "$weights" >lying.safetensors
cmp -s "$weights" lying.safetensors && fail "the lying file tells the truth"
expect 1 "lying.safetensors" "$agglo" inspect weights lying.safetensors
expect 1 "" "$agglo" inspect weights "$root/weights/clip-tiny.text.safetensors"

# the second teacher's are looked at before the first one starts
expect 1 "teacher dinov2" "$agglo" teach recipe.yaml --set teachers.dinov2.weights=no-such.safetensors
[ ! -e cache ] || fail "the first teacher was started for nothing"

# a dataset without a sample: nothing to teach, nothing to learn or to judge
expect 3 "" "$agglo" ingest missing.tar --out data/empty
expect 0 "" "$agglo" teach recipe.yaml --set dataset=data/empty --set val=null --set cache=empty-cache
grep -q 'no samples; nothing to do' stdout || fail "teach on nothing said: $(cat stdout)"
expect 1 "the dataset holds no samples" "$agglo" train recipe.yaml --out run --set dataset=data/empty --set cache=empty-cache
expect 1 "no picture with a label" "$agglo" -q eval knn --train data/empty --val data/val --weights "$weights"
[ ! -e run ] || fail "training on nothing made a run"

# a cache that was made from other weights
"$agglo" teach recipe.yaml >/dev/null
"$agglo" weights init clip --set dim=128 --set depth=6 --set heads=2 --set patch=4 --set image=32 --set proj=64 --seed 5 --out other.safetensors >/dev/null
expect 1 "weights" "$agglo" teach recipe.yaml --set teachers.clip.weights=other.safetensors
expect 1 "the cache was made from other weights" "$agglo" train recipe.yaml --out run --set teachers.clip.weights=other.safetensors
expect 1 "views" "$agglo" train recipe.yaml --out run --set views.seed=99
"$agglo" inspect cache cache --verify >/dev/null || fail "a refusal changed the cache"

# a damaged unit is noticed by verify, by the trainer, and by nobody crashing
unit=$(ls cache/clip/*.lmdb | head -n 1)
cp "$unit" unit.good
printf '\xff' | dd of="$unit" bs=1 seek=$(($(stat -c %s "$unit") / 2)) conv=notrunc status=none
cmp -s "$unit" unit.good && printf '\x00' | dd of="$unit" bs=1 seek=$(($(stat -c %s "$unit") / 2)) conv=notrunc status=none
expect 1 "1 bad units found" "$agglo" inspect cache cache --verify
got=0
"$agglo" train recipe.yaml --out run-damaged >/dev/null 2>stderr || got=$?
[ $got -le 3 ] || fail "training on a damaged unit crashed ($got)"
cp unit.good "$unit"

# a shard of the dataset that is gone costs itself
mv data/train/shards/000001.tar gone.tar
expect 3 "" "$agglo" inspect dataset data/train
got=0
"$agglo" inspect dataset data/train --verify >/dev/null 2>stderr || got=$?
[ $got = 1 ] || fail "verify did not notice the missing shard"
expect 3 "000001.tar" "$agglo" -q eval knn --train data/train --val data/val --weights "$weights"
[ "$(wc -l <stderr)" = 1 ] || fail "one missing shard is named once: $(cat stderr)"
expect 3 "000001.tar" "$agglo" -q train recipe.yaml --out run-lost
mv gone.tar data/train/shards/000001.tar

# a run is not continued under another recipe
"$agglo" train recipe.yaml --out run >/dev/null
expect 1 "recipe" "$agglo" train recipe.yaml --out run --set train.lr=0.5
