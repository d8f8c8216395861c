# The whole way on real pictures, twice: equal bytes at any number of threads, and results that make sense.
pictures source 9
recipe recipe.yaml

"$agglo" ingest source/train.tar --out data/train --shard-samples 20 --json --jobs 1 >ingest.json
"$agglo" ingest source/val.tar --out data/val
kept=$(value ingest.json samples_kept)
[ "$kept" -gt 30 ] || fail "only $kept pictures"
[ "$(value ingest.json samples_rejected)" = 0 ] || fail "pictures were rejected"
[ "$(value ingest.json shards_failed)" = 0 ] || fail "a shard failed"
"$agglo" ingest source/train.tar --out data/train --shard-samples 20 --json >again.json
[ "$(value again.json up_to_date)" = true ] || fail "ingest did its work twice"
mkdir other
"$agglo" ingest source/train.tar --out other/train --shard-samples 20 --jobs 3
same data/train/shards other/train/shards
same data/train/index.bin other/train/index.bin

# standard input, also compressed, gives the same shards
"$agglo" ingest - --out other/stdin --shard-samples 20 <source/train.tar
same data/train/shards other/stdin/shards
gzip -c source/train.tar | "$agglo" ingest - --out other/gzip --shard-samples 20 --json >gzip.json
same data/train/shards other/gzip/shards
for file in ingest.json gzip.json; do # what the clock decides has one decimal
  value $file seconds | grep -qE '^[0-9]+\.[0-9]$' || fail "seconds: $(value $file seconds)"
done

# shards are webdatasets: members in order, image bytes untouched
first=$(ls source/train | head -n 1)
tar -xOf data/train/shards/000000.tar "$first" | cmp - "source/train/$first" || fail "bytes of a sample changed"

"$agglo" inspect dataset data/train --verify --json >dataset.json
[ "$(value dataset.json samples)" = "$kept" ] || fail "inspect counts otherwise"
[ "$(value dataset.json labelled)" = "$kept" ] || fail "labels are missing"
[ "$(value dataset.json captioned)" = "$kept" ] || fail "captions are missing"
"$agglo" inspect dataset data/train --sample 0/3 --recipe recipe.yaml --view 1 --png whole.png --json >sample.json
key=$(value sample.json key)
"$agglo" inspect dataset data/train --sample "$key" --json >by-key.json
"$agglo" inspect dataset data/train --sample "$(value sample.json uid)" --json >by-uid.json
same by-key.json by-uid.json
file whole.png 2>/dev/null | grep -q "PNG" || [ "$(head -c 4 whole.png | tail -c 3)" = PNG ] || fail "no PNG"

"$agglo" teach recipe.yaml --threads 1 --json >teach.json
"$agglo" teach recipe.yaml >again.txt
[ "$(grep -c 'nothing to do' again.txt)" = 4 ] || fail "teach did its work twice: $(cat again.txt)"
"$agglo" teach recipe.yaml --verify >/dev/null
"$agglo" inspect cache cache --verify --json >cache.json
grep -q '"verified": true' cache.json || fail "not verified"
"$agglo" inspect cache cache --sample "$key" --view 1 --teacher clip --npy clip --png view.png --json >target.json
[ "$(stat -c %s clip.summary.npy)" = $((128 + 4 * 64)) ] || fail "summary.npy has another size"
[ "$(stat -c %s clip.spatial.npy)" = $((128 + 4 * 8 * 8 * 128)) ] || fail "spatial.npy has another size"
# the view that the cache stored is the one that the recipe draws, and its pixels are the student's (both see 32 x 32)
grep -A5 '"box"' sample.json | tr -d ' \n' | grep -o '\[[0-9,]*\]' >box-a
grep -A5 '"box"' target.json | tr -d ' \n' | grep -o '\[[0-9,]*\]' >box-b
same box-a box-b
[ "$(value sample.json pixel_hash)" = "$(grep -o '"pixel_hash": "[0-9a-f]*"' target.json | cut -d'"' -f4)" ] ||
  fail "teacher and student do not see the same pixels"

# the parts of a pass, done apart and on other threads, are the whole pass
recipe parts.yaml
sed -i 's/^cache: cache/cache: other\/cache/' parts.yaml
for part in 3 1 2; do "$agglo" teach parts.yaml --part $part/3 --threads 2 >/dev/null; done
same cache other/cache
same cache-val other/cache-val

"$agglo" train recipe.yaml --out run --threads 1 --json >train.json
[ "$(value train.json steps)" = 24 ] || fail "not all steps"
"$agglo" train recipe.yaml --out run2 --threads 3 >/dev/null
same run/student.safetensors run2/student.safetensors
"$agglo" train recipe.yaml --out run --json >again.json
[ "$(value again.json up_to_date)" = true ] || fail "train did its work twice"
[ "$(wc -l <run/metrics.jsonl)" = 6 ] || fail "metrics: $(cat run/metrics.jsonl)"
"$agglo" train recipe.yaml --out run0 --set train.steps=0 >/dev/null
for run in run0 run; do "$agglo" eval distill --run $run --recipe recipe.yaml --json >$run.json; done
for teacher in clip dinov2; do
  before=$(value run0.json teachers $teacher spatial_cos) after=$(value run.json teachers $teacher spatial_cos)
  awk -v a="$before" -v b="$after" 'BEGIN { exit !(b > a + 0.1) }' || fail "$teacher: cosine $before before, $after after"
done
"$agglo" eval distill --run run --dataset data/train >/dev/null
"$agglo" eval knn --train data/train --val data/val --weights run/student.safetensors --json >knn.json
"$agglo" eval knn --train data/train --val data/val --weights run/student.safetensors --head clip >/dev/null
"$agglo" eval knn --train data/train --val data/val --weights "$root/weights/dinov2-tiny.safetensors" >/dev/null
[ "$(value knn.json n_val)" -gt 5 ] || fail "k-NN over nothing"
"$agglo" inspect weights run/student.safetensors --json >weights.json
[ "$(value weights.json kind)" = student ] || fail "not a student"

# several datasets are one, shards numbered through; several view groups; a run that starts from another one's weights
recipe many.yaml
sed -i 's,^dataset: .*,dataset: [data/train\, data/val],; s,^cache: .*,cache: many-cache,; s/^views: .*/views: {near: {count: 1, scale: [0.1, 0.4]}, far: {count: 1, scale: [0.5, 1.0]}}/' many.yaml
"$agglo" teach many.yaml --json >many.json
for teacher in clip dinov2; do
  for group in near far; do
    [ "$(ls many-cache/$teacher/$group-*.lmdb | wc -l)" = "$(ls data/train/shards data/val/shards | grep -c tar)" ] ||
      fail "units of $teacher, $group: $(ls many-cache/$teacher)"
  done
done
"$agglo" inspect cache many-cache --verify >/dev/null
"$agglo" train many.yaml --out near --set train.init=run >/dev/null
"$agglo" train many.yaml --out far --set teachers.clip.group=far --set teachers.dinov2.group=far >/dev/null
cmp -s near/student.safetensors far/student.safetensors && fail "the view group makes no difference"
expect 2 "have different view groups" "$agglo" train many.yaml --out mixed --set teachers.dinov2.group=far
"$agglo" train many.yaml --out start --set train.init=run --set train.steps=0 >/dev/null
"$agglo" eval distill --run start --recipe recipe.yaml --json >start.json
same start.json run.json
"$agglo" -q eval distill --run near --recipe many.yaml >/dev/null
