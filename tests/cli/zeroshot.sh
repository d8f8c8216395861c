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

# the classes of CIFAR-10 that came with the teacher
expect 1 "the text has no class 'rat' of the dataset; --labels number" "$agglo" eval zeroshot --val data --weights "$clip" \
  --text "$root/weights/clip-tiny.text.safetensors"
zeroshot "$root/weights/clip-tiny.text.safetensors" --labels number >cifar.json
[ "$(value cifar.json classes)" = 10 ] || fail "not ten classes: $(cat cifar.json)"

# a student's head in the space of the text
"$agglo" -q weights init vit --set dim=64 --set depth=1 --set heads=1 --set patch=4 --set image=32 --seed 1 --out student.safetensors >/dev/null
"$agglo" -q eval zeroshot --val data --weights student.safetensors --text right.safetensors --json >student.json
[ "$(value student.json n_val)" = 3 ] || fail "a student is not evaluated: $(cat student.json)"

text few.safetensors 'cat,dog' cat/1 dog/2
expect 1 "a picture has label 2, there are 2 classes" "$agglo" -q eval zeroshot --val data --weights "$clip" --text few.safetensors --labels number
text names.safetensors 'cat' cat/1 dog/2
expect 1 "\`names\` holds 1 names, \`classes\` 2 rows (names.safetensors)" "$agglo" eval zeroshot --val data --weights "$clip" --text names.safetensors
expect 1 "embeddings have 64 channels, the model's summary 128" "$agglo" eval zeroshot --val data --weights "$root/weights/dinov2-tiny.safetensors" --text right.safetensors
expect 1 "there is no tensor \`classes\`" "$agglo" eval zeroshot --val data --weights "$clip" --text "$clip"
expect 2 "--text FILE.safetensors is missing" "$agglo" eval zeroshot --val data --weights "$clip"
