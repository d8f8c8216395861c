# Peak memory of ingest, teach and embed does not grow with the size of the dataset.
if grep -qE '__(asan|tsan)_init' "$agglo"; then skip "sanitizers keep freed memory"; fi
pictures source 9
mkdir big
for i in $(seq 0 11); do # twelve times the pictures under other keys
  mkdir many
  for f in source/train/*; do ln "$f" "many/$i-$(basename "$f")"; done
  (cd many && tar -cf ../big/train-$i.tar --sort=name --mtime=@0 --owner=0 --group=0 -- *)
  rm -r many
done
slack=6000

"$maxrss" small.kb "$agglo" ingest big/train-0.tar --out small/train --shard-samples 53 >/dev/null
"$maxrss" big.kb "$agglo" ingest big/train-*.tar --out large/train --shard-samples 53 >/dev/null
echo "ingest: $(cat small.kb) KiB for one shard, $(cat big.kb) KiB for twelve"
[ "$(cat big.kb)" -lt $(($(cat small.kb) + slack)) ] || fail "ingest grows with its input"

for size in small large; do
  recipe $size.yaml
  sed -i "s,^dataset: .*,dataset: $size/train,; /^val:/d; s,^cache: .*,cache: $size/cache," $size.yaml
done
"$maxrss" small.kb "$agglo" teach small.yaml >/dev/null
"$maxrss" big.kb "$agglo" teach large.yaml >/dev/null
echo "teach: $(cat small.kb) KiB for one shard, $(cat big.kb) KiB for twelve"
[ "$(cat big.kb)" -lt $(($(cat small.kb) + slack)) ] || fail "teach grows with its dataset"

embed() { "$maxrss" $1 "$agglo" embed --weights "$root/weights/clip-tiny.safetensors" --out $2 "${@:3}" >/dev/null 2>&1; }
embed small.kb one.safetensors big/train-0.tar
embed big.kb twelve.safetensors big/train-*.tar
echo "embed: $(cat small.kb) KiB for one shard, $(cat big.kb) KiB for twelve"
[ "$(cat big.kb)" -lt $(($(cat small.kb) + slack)) ] || fail "embed grows with its input"
