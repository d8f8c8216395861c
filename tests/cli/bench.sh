# agglo bench decode: a table, JSON and the crops, over the decoders' fixtures.
mkdir fixtures
n=0
for name in jpeg_420.jpg jpeg_progressive.jpg jpeg_exif6.jpg jpeg_exif8.jpg jpeg_cmyk_adobe.jpg png_rgb8.png png_rgb8_interlaced.png webp_lossy.webp \
  webp_lossless.webp webp_animated.webp; do
  cp "$root/tests/fixtures/decode/$name" "fixtures/$(printf '%04d' $n).${name##*.}"
  n=$((n + 1))
done
tar -C fixtures --format=ustar -cf source.tar $(ls fixtures)
"$agglo" -q ingest source.tar --out data --shard-samples 4 >/dev/null

"$agglo" bench decode data --threads 2 --seconds 1 --size 16 --boxes boxes.jsonl --json >bench.json
[ "$(value bench.json images)" = $n ] || fail "$(value bench.json images) images"
[ "$(value bench.json threads)" = 2 ] || fail "not two threads"
[ "$(value bench.json rounds)" -ge 3 ] || fail "too few rounds"
for kind in libraries views whole verify header; do
  value bench.json one_thread $kind images_per_s | grep -qE '^[0-9]+\.[0-9]$' || fail "$kind: a rate has one decimal"
done
value bench.json all_threads views images_per_s | grep -qE '^[0-9]+\.[0-9]$' || fail "no rate of two threads"
value bench.json over_libraries_percent | grep -qE '^-?[0-9]+\.[0-9]$' || fail "no comparison"
value bench.json scaling_percent | grep -qE '^[0-9]+\.[0-9]$' || fail "no scaling"

# the crops name bytes that are the pictures'
[ "$(wc -l <boxes.jsonl)" = $n ] || fail "not one line a picture"
line=$(sed -n 5p boxes.jsonl)
field() { sed -nE "s/.*\"$1\":\"?([^\",}]+).*/\1/p" <<<"$line"; }
[ "$(field key)" = 0004 ] || fail "another key: $line"
head -c $(($(field offset) + $(field bytes))) "$(field shard)" | tail -c "$(field bytes)" | cmp - fixtures/0004.jpg || fail "the bytes are another picture's"
cp boxes.jsonl first.jsonl
"$agglo" bench decode data --threads 1 --seconds 1 --size 16 --boxes boxes.jsonl >table
cmp boxes.jsonl first.jsonl || fail "other crops the second time"
grep -q 'views: decode, crop, resize' table || fail "no table: $(cat table)"

expect 1 "nowhere/boxes" "$agglo" bench decode data --boxes nowhere/boxes
expect 2 "'agglo bench' takes one of: decode, ops, teacher; not 'encode'" "$agglo" bench encode

# agglo bench teacher: of a file and of a name, a table, JSON, and one run for every line
clip=$root/weights/clip-tiny.safetensors
"$agglo" bench teacher --weights "$clip" --batch 3 --size 16 --seconds 0.01 --threads 2 --json >teacher.json
[ "$(value teacher.json batch)" = 3 ] || fail "not batches of three: $(cat teacher.json)"
[ "$(value teacher.json size)" = 16 ] || fail "not 16 pixels: $(cat teacher.json)"
[ "$(value teacher.json rounds)" -ge 3 ] || fail "too few rounds"
for kind in images_per_s ms_per_image gflop_per_s product_gflop_per_s percent_of_product; do
  value teacher.json $kind | grep -qE '^[0-9]+\.[0-9]$' || fail "$kind has not one decimal: $(cat teacher.json)"
done
[ "$(value teacher.json bytes_peak)" -gt 4000000 ] || fail "the weights alone are more: $(cat teacher.json)"
mkdir tmp
TMPDIR=$PWD/tmp "$agglo" bench teacher --arch dinov2-small --size 28 --seconds 0.01 --threads 1 >table
grep -q '22.1 M parameters' table || fail "another architecture: $(cat table)"
[ -z "$(ls -A tmp)" ] || fail "the random weights were left behind: $(ls -A tmp)"
expect 2 "--lines and --json do not go together" "$agglo" bench teacher --weights "$clip" --lines --json
printf 'a\nb\n' | "$agglo" bench teacher --weights "$clip" --lines >lines
[ "$(grep -cE '^[0-9]+\.[0-9]+ [0-9]+\.[0-9]+$' lines)" = 2 ] || fail "not two runs: $(cat lines)"
expect 2 "--weights FILE or --arch NAME is missing" "$agglo" bench teacher
expect 2 "did you mean" "$agglo" bench teacher --arch dinov2-smal
