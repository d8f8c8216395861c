# A SAM teacher from random weights to a student that learns of it, beside CLIP; pictures that are padded, not cut.
pictures source 12
sam=(--set patch=8 --set image=64 --set window=3 --set neck=24 --seed 5)
"$agglo" weights init sam --set global_layers=1,3 --set dim=48 --set heads=3 --set depth=4 "${sam[@]}" --out sam.safetensors >/dev/null
"$agglo" weights init sam --set depth=4 --set heads=3 --set dim=48 --set global_layers=1,3 "${sam[@]}" --out sam2.safetensors >/dev/null
same sam.safetensors sam2.safetensors # fields in any order
expect 2 "global_layers" "$agglo" weights init sam --set global_layers=9 --out bad.safetensors
"$agglo" inspect weights sam.safetensors --json >weights.json
[ "$(value weights.json arch)" = sam-48x4-p8-w3 ] || fail "arch: $(cat weights.json)"
[ "$(value weights.json config global_layers)" = 1,3 ] || fail "global_layers: $(cat weights.json)"
[ "$(value weights.json config neck)" = 24 ] || fail "neck: $(cat weights.json)"

"$agglo" ingest source/train.tar --out data/train --shard-samples 10 >/dev/null
"$agglo" ingest source/val.tar --out data/val >/dev/null
recipe recipe.yaml
sed -i 's,^  - {name: dinov2.*,  - {name: sam\, weights: sam.safetensors\, batch: 3\, summary_weight: 0.5},' recipe.yaml
"$agglo" teach recipe.yaml --threads 1 >/dev/null
"$agglo" teach recipe.yaml --threads 3 --set cache=other --set val_cache=other-val --set teachers.sam.batch=8 >/dev/null
rm other*/datasets.json
cp -r cache first && rm first/datasets.json
same first other
grep -q '"options": "neck=0,gelu,w3"' cache/sam/teacher.json || fail "teacher.json: $(cat cache/sam/teacher.json)"
"$agglo" inspect cache cache --verify >/dev/null
key=$("$agglo" inspect dataset data/train --sample 0/3 --json | grep -o '"key": "[^"]*"' | cut -d'"' -f4)
"$agglo" inspect cache cache --sample "$key" --view 1 --teacher sam --npy sam >/dev/null
[ "$(stat -c %s sam.summary.npy)" = $((128 + 4 * 48)) ] || fail "summary.npy has another size"
[ "$(stat -c %s sam.spatial.npy)" = $((128 + 4 * 8 * 8 * 48)) ] || fail "spatial.npy has another size"
"$agglo" train recipe.yaml --out run >/dev/null
"$agglo" train recipe.yaml --out run0 --set train.steps=0 >/dev/null
for run in run0 run; do "$agglo" eval distill --run $run --recipe recipe.yaml --json >$run.json; done
before=$(value run0.json teachers sam spatial_cos) after=$(value run.json teachers sam spatial_cos)
awk -v a="$before" -v b="$after" 'BEGIN { exit !(b > a + 0.1) }' || fail "sam: cosine $before before, $after after"

# behind the neck, at another size: other features, which nobody takes for these
neck=(--set teachers.sam.neck=true --set teachers.sam.size=40 --set cache=neck --set val_cache=neck-val)
expect 2 "neck" "$agglo" teach recipe.yaml --set teachers.clip.neck=true --set cache=bad --set val_cache=bad-val
"$agglo" teach recipe.yaml "${neck[@]}" >/dev/null
grep -q '"options": "neck=1,gelu,w3,resampled"' neck/sam/teacher.json || fail "teacher.json: $(cat neck/sam/teacher.json)"
"$agglo" inspect cache neck --sample "$key" --view 1 --teacher sam --npy neck >/dev/null
[ "$(stat -c %s neck.spatial.npy)" = $((128 + 4 * 5 * 5 * 24)) ] || fail "spatial.npy has another size"
[ "$(stat -c %s neck.summary.npy)" = $((128 + 4 * 48)) ] || fail "summary.npy has another size"
expect 1 "behind the neck" "$agglo" train recipe.yaml --out mixed --set cache=neck --set val_cache=neck-val
expect 1 "before the neck" "$agglo" train recipe.yaml --out mixed --set teachers.sam.neck=true
"$agglo" train recipe.yaml --out neck-run "${neck[@]}" >/dev/null

"$agglo" eval knn --train data/train --val data/val --weights sam.safetensors --json >knn.json
[ "$(value knn.json n_val)" -gt 3 ] || fail "k-NN over nothing"

# whole pictures, wide and high: padded, so the grid is square whatever they are
mkdir photos
cp "$root"/tests/fixtures/preprocess/*.jpg photos
"$agglo" embed --weights sam.safetensors photos --out embed.safetensors --json >embed.json
[ "$(value embed.json images)" = "$(ls photos | wc -l)" ] || fail "embed: $(cat embed.json)"
"$agglo" embed --weights sam.safetensors --size 40 photos --out small.safetensors >/dev/null
[ "$(stat -c %s small.safetensors)" -lt "$(stat -c %s embed.safetensors)" ] || fail "a smaller input gives no smaller grid"
