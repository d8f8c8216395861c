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
expect 1 "precision: the cache has bf16, the recipe asks for fp32" "$agglo" train recipe.yaml --out run --set cache=half
expect 1 "precision: the cache has fp32, the recipe asks for bf16" "$agglo" train recipe.yaml --out run "${half[@]}"
# as any other edit of how features are made
expect 1 "act: the cache has gelu, the recipe asks for quick_gelu" "$agglo" train recipe.yaml --out run --set teachers.clip.act=quick_gelu
expect 1 "pos_interp: the cache has hub, the recipe asks for hf" "$agglo" train recipe.yaml --out run --set teachers.clip.pos_interp=hf
expect 1 "summary: the cache has proj, the recipe asks for preproj" "$agglo" train recipe.yaml --out run --set teachers.clip.summary=preproj
expect 1 "spatial_norm: the cache has true, the recipe asks for false" "$agglo" train recipe.yaml --out run --set teachers.clip.spatial_norm=false
expect 1 "neck: the cache's teacher has no such option" "$agglo" train recipe.yaml --out run --set teachers.dinov2.neck=true
[ ! -e run ] || fail "a refusal started a run"

# training in BF16: the same bytes at any number of threads and after kills, F32 weights at the end, and about what F32 learns
half=(--set train.precision=bf16)
expect 2 "precision" "$agglo" train recipe.yaml --out run --set train.precision=half
"$agglo" train recipe.yaml --out run --threads 1 --json >f32.json
"$agglo" train recipe.yaml --out half1 "${half[@]}" --threads 1 --json >half.json
"$agglo" train recipe.yaml --out half3 "${half[@]}" --threads 3 >/dev/null
same half1/student.safetensors half3/student.safetensors
cmp -s run/student.safetensors half1/student.safetensors && fail "the precision makes no difference"
[ "$(stat -c %s run/student.safetensors)" = "$(stat -c %s half1/student.safetensors)" ] || fail "exports have other types"
expect 1 "recipe" "$agglo" train recipe.yaml --out half1 --set train.precision=fp32
n=0
for after in 8 20 40 60 90 130 170 210 260 330 420; do
  "$agglo" train recipe.yaml --out killed "${half[@]}" --threads 2 >/dev/null 2>&1 &
  pid=$!
  sleep "$(awk -v ms="$after" 'BEGIN { printf "%.3f", ms / 1000 }')"
  kill -9 $pid 2>/dev/null || true
  status=0
  wait $pid 2>/dev/null || status=$?
  [ $status -ne 137 ] || n=$((n + 1))
done
"$agglo" train recipe.yaml --out killed "${half[@]}" --threads 2 >/dev/null
[ $n -gt 0 ] || fail "train was never caught"
same half1/student.safetensors killed/student.safetensors
for run in run half1; do "$agglo" eval distill --run $run --recipe recipe.yaml --json >$run.json; done
for teacher in clip dinov2; do
  a=$(value run.json teachers $teacher spatial_cos) b=$(value half1.json teachers $teacher spatial_cos)
  awk -v a="$a" -v b="$b" 'BEGIN { d = a - b; exit !(d < 0.02 && d > -0.02) }' || fail "$teacher: cosine $a in fp32, $b in bf16"
done
