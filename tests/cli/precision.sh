# Teachers and students in BF16: asked for, recorded, never mixed with F32, and as reproducible.
pictures source 12
recipe recipe.yaml
"$agglo" ingest source/train.tar --out data/train --shard-samples 10 >/dev/null
"$agglo" ingest source/val.tar --out data/val >/dev/null
"$agglo" teach recipe.yaml >/dev/null

# other features, so another cache, and nobody takes one for the other
half=(--set teachers.clip.precision=bf16 --set teachers.dinov2.precision=bf16)
expect 2 "precision" "$agglo" teach recipe.yaml --set teachers.clip.precision=fp8
expect 1 "cannot add teacher to cache" "$agglo" teach recipe.yaml "${half[@]}"
"$agglo" inspect cache cache --verify >/dev/null || fail "a refusal changed the cache"
"$agglo" teach recipe.yaml "${half[@]}" --set cache=half --set val_cache=half-val --threads 1 >/dev/null
"$agglo" teach recipe.yaml "${half[@]}" --set cache=half2 --set val_cache=half2-val --threads 3 --set teachers.clip.batch=3 >/dev/null
grep -q '"options": "[^"]*,bf16"' half/clip/teacher.json || fail "teacher.json: $(cat half/clip/teacher.json)"
grep -q bf16 cache/clip/teacher.json && fail "fp32 says bf16"
rm half*/datasets.json
same half half2
expect 1 "the cache has features of precision bf16, the recipe asks for fp32" "$agglo" train recipe.yaml --out run --set cache=half
expect 1 "the cache has features of precision fp32, the recipe asks for bf16" "$agglo" train recipe.yaml --out run "${half[@]}"
[ ! -e run ] || fail "a refusal started a run"
