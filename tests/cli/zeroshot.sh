# agglo eval zeroshot: class embeddings that are the pictures' own features, so that every answer is known.
clip=$root/weights/clip-tiny.safetensors
mkdir -p photos/cat photos/dog photos/rat
cp "$root"/tests/fixtures/preprocess/portrait.jpg photos/cat/1.jpg
cp "$root"/tests/fixtures/preprocess/large.jpg photos/dog/2.jpg
cp "$root"/tests/fixtures/preprocess/panorama.jpg photos/rat/3.jpg
cp "$root"/tests/fixtures/preprocess/square.jpg photos/loose.jpg # no subfolder, no label
"$agglo" -q ingest photos --out data >/dev/null
"$agglo" -q embed --weights "$clip" data --out npy --summary-only >/dev/null

# text FILE NAMES KEY...: class embeddings, the summaries of these pictures; NAMES is JSON for the metadata
text() {
  local file=$1 names=$2 header n
  shift 2
  header="{\"__metadata__\":{\"names\":\"$names\"},\"classes\":{\"dtype\":\"F32\",\"shape\":[$#,64],\"data_offsets\":[0,$((256 * $#))]}}"
  n=${#header}
  printf "\\x$(printf %02x $((n % 256)))\\x$(printf %02x $((n / 256)))\\0\\0\\0\\0\\0\\0%s" "$header" >"$file"
  for key in "$@"; do tail -c 256 "npy/$key.summary.npy" >>"$file"; done
}
zeroshot() { "$agglo" -q eval zeroshot --val data --weights "$clip" --json --text "$@"; }

text right.safetensors 'cat,dog,rat' cat/1 dog/2 rat/3
zeroshot right.safetensors >right.json
[ "$(value right.json top1)" = 1.0 ] || fail "its own features are not the nearest: $(cat right.json)"
[ "$(value right.json n_val)/$(value right.json n_unlabelled)" = 3/1 ] || fail "other pictures: $(cat right.json)"
[ "$(value right.json labels)" = name ] || fail "not by name: $(cat right.json)"

# in another order the names find the rows; by number one of three is right, and top-5 of three classes is everything
text turned.safetensors '[\"rat\",\"dog\",\"cat\"]' rat/3 dog/2 cat/1
zeroshot turned.safetensors >turned.json
[ "$(value turned.json top1)" = 1.0 ] || fail "names do not find rows: $(cat turned.json)"
zeroshot turned.safetensors --labels number >number.json
[ "$(value number.json correct)" = 1 ] || fail "labels are not rows: $(cat number.json)"
[ "$(value number.json top5)" = 1.0 ] || fail "top-5 of three classes: $(cat number.json)"
"$agglo" -q eval zeroshot --val data --weights "$clip" --text turned.safetensors --labels number >line
grep -q 'top-1 0.3333, top-5 1.0000, mean per class 0.3333 (1 of 3; 3 classes, labels by number)' line || fail "it says: $(cat line)"

# seven classes of one to seven pictures, by numbers in another order than the rows: the answers are computed here, in double precision
i=0 class=0 in_class=0
for picture in "$root"/tests/fixtures/preprocess/*.jpg "$root"/tests/fixtures/preprocess/*.png "$root"/tests/fixtures/decode/jpeg_4*.jpg \
  "$root"/tests/fixtures/decode/jpeg_{cmyk_adobe,progressive,strip,restart}.jpg "$root"/tests/fixtures/decode/png_{ga8,gray8,pal4,rgb8,rgba8,rgb16}.png "$root"/tests/fixtures/decode/webp_*.webp; do
  [ $class -lt 7 ] || break
  mkdir -p seven/c$class
  cp "$picture" "seven/c$class/$(printf '%02d' $i)"."${picture##*.}"
  i=$((i + 1)) in_class=$((in_class + 1))
  if [ $in_class -gt $class ]; then class=$((class + 1)) in_class=0; fi
done
[ $i = 28 ] || fail "$i pictures, not 1 + 2 + ... + 7"
"$agglo" -q ingest seven --out seven-data >/dev/null
"$agglo" -q embed --weights "$clip" seven-data --out npy --summary-only >/dev/null
rows=(c0/00 c2/03 c1/01 c3/06 c5/15 c4/10 c6/21)
text seven.safetensors 'r0,r1,r2,r3,r4,r5,r6' "${rows[@]}"
floats() { tail -c 256 "npy/$1.summary.npy" | od -An -v -t f4 -w256; }
{
  for key in "${rows[@]}"; do echo "row $(floats "$key")"; done
  for file in seven/*/*; do file=${file#seven/} && echo "${file:1:1} $(floats "${file%.*}")"; done
} | awk '
  BEGIN { n = 0 }
  { s = 0; for (i = 2; i <= NF; i++) s += $i * $i; for (i = 2; i <= NF; i++) v[i] = $i / sqrt(s) }
  $1 == "row" { for (i = 2; i <= NF; i++) row[n, i] = v[i]; n++; next }
  { for (k = 0; k < n; k++) { c[k] = 0; for (i = 2; i <= NF; i++) c[k] += row[k, i] * v[i] }
    rank = 0
    for (k = 0; k < n; k++) if (k != $1) {
      rank += c[k] > c[$1]
      if (c[k] - c[$1] < 1e-5 && c[$1] - c[k] < 1e-5) print "two rows are as similar as can be"
    }
    seen[$1]++; right[$1] += rank < 1; top1 += rank < 1; top5 += rank < 5; m++ }
  END { for (k in seen) { mean += right[k] / seen[k]; classes++ }
    printf "%.4f %.4f %.4f", top1 / m, top5 / m, mean / classes
    if (!(n == 7 && classes == 7 && top1 > 0 && top5 > top1 && top5 < m && mean / classes != top1 / m)) printf " tell nothing" }' >answers
"$agglo" -q eval zeroshot --val seven-data --weights "$clip" --text seven.safetensors --labels number --json >seven.json
printf '%.4f %.4f %.4f' "$(value seven.json top1)" "$(value seven.json top5)" "$(value seven.json mean_per_class)" | cmp - answers ||
  fail "top-1, top-5 and mean per class are $(cat answers), it says: $(cat seven.json)"

# names on one side alone are no names: said, and not when numbers were asked for
"$agglo" -q ingest seven/c6 --out nameless >/dev/null
text plain.safetensors '' cat/1 dog/2 rat/3
sed -i 's,"names":"","nemas":"",' plain.safetensors
expect 0 "data names its classes and plain.safetensors does not: labels are taken as numbers of rows" "$agglo" -q eval zeroshot --val data --weights "$clip" --text plain.safetensors
"$agglo" -q eval zeroshot --val data --weights "$clip" --text plain.safetensors --labels number >/dev/null 2>log
[ ! -s log ] || fail "a word too many: $(cat log)"

# the classes of CIFAR-10 that came with the teacher
expect 1 "the text has no class 'rat' of the dataset; --labels number" "$agglo" eval zeroshot --val data --weights "$clip" \
  --text "$root/weights/clip-tiny.text.safetensors"
zeroshot "$root/weights/clip-tiny.text.safetensors" --labels number >cifar.json
[ "$(value cifar.json classes)" = 10 ] || fail "not ten classes: $(cat cifar.json)"

# a student's head in the space of the text
"$agglo" -q weights init vit --set dim=64 --set depth=1 --set heads=1 --set patch=4 --set image=32 --seed 1 --out student.safetensors >/dev/null
"$agglo" -q eval zeroshot --val data --weights student.safetensors --text right.safetensors --json >student.json
[ "$(value student.json n_val)" = 3 ] || fail "a student is not evaluated: $(cat student.json)"

# a label without a row is found before the model runs: the damaged picture is never decoded
mkdir -p cut/cat cut/dog cut/rat
head -c 3000 photos/cat/1.jpg >cut/cat/1.jpg
cp photos/dog/2.jpg cut/dog
cp photos/rat/3.jpg cut/rat
"$agglo" -q ingest cut --out cut-data --verify header >/dev/null
text few.safetensors 'cat,dog' cat/1 dog/2
expect 1 "picture rat/3 has label 2, there are 2 classes (cut-data)" "$agglo" eval zeroshot --val cut-data --weights "$clip" --text few.safetensors --labels number
grep -q "left out" stderr && fail "pictures were embedded first: $(cat stderr)"
expect 0 "left out cat/1" "$agglo" eval zeroshot --val cut-data --weights "$clip" --text right.safetensors
text names.safetensors 'cat' cat/1 dog/2
expect 1 "\`names\` holds 1 names, \`classes\` 2 rows (names.safetensors)" "$agglo" eval zeroshot --val data --weights "$clip" --text names.safetensors
expect 1 "embeddings have 64 channels, the model's summary 128" "$agglo" eval zeroshot --val data --weights "$root/weights/dinov2-tiny.safetensors" --text right.safetensors
expect 1 "there is no tensor \`classes\`" "$agglo" eval zeroshot --val data --weights "$clip" --text "$clip"
expect 2 "--text FILE.safetensors is missing" "$agglo" eval zeroshot --val data --weights "$clip"
