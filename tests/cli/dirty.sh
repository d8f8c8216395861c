# Dirty sources: what is damaged costs itself, is named, and takes nothing with it; how the tar was made makes no difference.
decode=$root/tests/fixtures/decode

# ingested DATASET STATUS SRC...: a fresh dataset; the exit status is 0 or 3 as expected
ingested() {
  local out=$1 status=$2
  shift 2
  rm -rf "$out"
  expect "$status" "" "$agglo" -q ingest "$@" --out "$out" --json
}

# kept DATASET N and reason DATASET CODE N: samples kept, lines of one reason in rejects.jsonl
kept() {
  [ "$(value "$1/dataset.json" samples)" = "$2" ] || fail "$1 has $(value "$1/dataset.json" samples) samples, expected $2: $(head -n 3 "$1/rejects.jsonl")"
}
reason() {
  [ "$(grep -c "\"reason\": \"$2\"" "$1/rejects.jsonl")" = "$3" ] || fail "$1: expected $3 of '$2': $(head -n 5 "$1/rejects.jsonl")"
}

# tar_of FILE FOLDER [OPTION...]: members in the order of their names
tar_of() {
  local file=$PWD/$1 folder=$2
  shift 2
  (cd "$folder" && tar -cf "$file" --sort=name --mtime=@0 --owner=0 --group=0 --mode=0444 "$@" -- *)
}

# ---- pictures ----

# cut off anywhere, a picture is no picture
mkdir cut
for picture in jpeg_420.jpg jpeg_gray.jpg jpeg_progressive.jpg jpeg_restart.jpg png_rgb8.png png_rgb8_interlaced.png png_pal4.png webp_lossy.webp \
  webp_lossless.webp webp_lossy_alpha.webp webp_animated.webp; do
  size=$(stat -c %s "$decode/$picture")
  for ((n = 0; n < size; n += 1 + size / 41)); do
    head -c "$n" "$decode/$picture" >"cut/${picture%.*}-$n.jpg"
  done
  head -c $((size - 1)) "$decode/$picture" >"cut/${picture%.*}-end.jpg"
done
tar_of cut.tar cut
ingested out 0 cut.tar
kept out 0
[ "$(grep -cE '"reason": "(truncated|not_an_image)"' out/rejects.jsonl)" = "$(ls cut | wc -l)" ] || fail "other reasons: $(grep -vE 'truncated|not_an_image' out/rejects.jsonl | head -n 3)"

# bytes behind a picture do no harm, and neither does a wrong extension; pages and pictures of other kinds are told apart
mkdir odd
for picture in "$decode"/*.jpg "$decode"/*.png "$decode"/*.webp; do
  name=$(basename "$picture")
  { cat "$picture" && printf 'behind the end'; } >"odd/${name%.*}.jpg"
done
n=$(ls odd | wc -l)
printf '<!DOCTYPE html><html>404</html>' >odd/zz-page.jpg
printf 'GIF89a and so on' >odd/zz-gif.jpg
: >odd/zz-nothing.jpg
printf '\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x75\x30\0\0\x75\x30\1\0\0\0\0' >odd/zz-bomb.jpg
tar_of odd.tar odd
ingested out 0 odd.tar
kept out "$n"
[ "$(wc -l <out/rejects.jsonl)" = 4 ] || fail "rejects: $(cat out/rejects.jsonl)"
reason out not_an_image 2
reason out unsupported_format 1

# ---- names and dialects ----

long=$(printf 'd%.0s' {1..90})
mkdir -p "names/$long/$long" names/a.b names/__meta__ names/dir
cp "$decode/jpeg_444.jpg" names/plain.jpg
cp "$decode/jpeg_422.jpg" "names/$(printf 'n%.0s' {1..95}).jpg"
cp "$decode/jpeg_420.jpg" "names/$(printf 'm%.0s' {1..96}).jpg"
cp "$decode/jpeg_gray.jpg" "names/$(printf 'o%.0s' {1..97}).jpg"
cp "$decode/jpeg_rgb.jpg" "names/$long/$long/deep.JPG"
cp "$decode/jpeg_restart.jpg" "names/$(printf 'p%.0s' {1..250}).jpg"
cp "$decode/png_gray8.png" names/a.b/c.png
cp "$decode/png_rgb8.png" "$(printf 'names/caf\xe9.png')"
cp "$decode/png_ga8.png" "$(printf 'names/\xe6\x97\xa5\xe6\x9c\xac.png')"
cp "$decode/webp_lossy.webp" 'names/with space, "quotes" and \.webp'
cp "$decode/webp_lossless.webp" names/dir/.webp
printf 'caption' >names/a.b/c.txt
printf 'left alone' >names/__meta__/x.jpg
printf 'no extension' >names/readme
for format in gnu posix; do
  tar_of names.tar names --format=$format --no-recursion
  (cd names && find . -mindepth 1 -printf '%P\0' | LC_ALL=C sort -z | tar -cf ../names.tar --format=$format --mtime=@0.5 --null --no-recursion -T -)
  ingested $format 0 names.tar
  kept $format 11
  reason $format unsupported_member 1
  [ "$(wc -l <$format/rejects.jsonl)" = 1 ] || fail "rejects: $(cat $format/rejects.jsonl)"
done
same gnu/shards posix/shards
(cd names && tar -cf ../names.tar --format=ustar --mtime=@0 -- plain.jpg a.b/c.png a.b/c.txt "$long")
ingested out 0 names.tar
kept out 3

# ---- members ----

mkdir order types
cp "$decode/jpeg_444.jpg" order/a.jpg
cp "$decode/jpeg_422.jpg" order/b.jpg
cp "$decode/jpeg_420.jpg" order/b.jpeg
printf A >order/a.txt
printf B >order/b.txt
(cd order && tar -cf ../plain.tar --owner=0 --mtime=@0 a.jpg a.txt b.jpg b.txt && tar -cf ../mixed.tar --owner=0 --mtime=@0 b.txt a.txt a.jpg b.jpg)
(cd order && tar -cf ../twice.tar --hard-dereference --owner=0 --mtime=@0 a.jpg a.txt b.jpg b.txt b.jpeg a.txt)
ingested plain 0 plain.tar
ingested out 0 mixed.tar
kept out 2
[ ! -s out/rejects.jsonl ] || fail "members out of order are nothing bad: $(cat out/rejects.jsonl)"
ingested out 0 twice.tar
same plain/shards out/shards
reason out duplicate_key 1
reason out duplicate_member 1

cp order/a.jpg order/b.jpg types
ln types/a.jpg types/a-hard.jpg
ln -s a.jpg types/a-soft.jpg
mkfifo types/a-pipe.jpg
mkdir types/a-folder.jpg
tar_of types.tar types
ingested out 0 types.tar
kept out 2
reason out unsupported_member 3

# ---- the tar itself ----

# cut at every block: the pictures that stand whole before the cut are kept, and the shard is named unless a header ends it
(cd order && tar -cf ../pictures.tar --owner=0 --mtime=@0 a.jpg b.jpg && tar -cf ../long.tar --format=posix --owner=0 --mtime=@0.5 --transform 's,^,long/,' a.jpg b.jpg)
for tar in pictures long; do
  [ $tar = pictures ] && headers=1 || headers=3 # blocks before a member's data
  first=$(((headers + ($(stat -c %s order/a.jpg) + 511) / 512) * 512))
  second=$((first + (headers + ($(stat -c %s order/b.jpg) + 511) / 512) * 512))
  for ((n = 512; n <= second; n += 512)); do
    head -c $n $tar.tar >cut.tar
    status=3
    [ $n != $first ] && [ $n != $second ] || status=0
    ingested out $status cut.tar
    kept out $(((n >= first) + (n >= second)))
    [ $status = 0 ] || reason out shard_truncated 1
  done
done

# damage in the middle, and what is no tar
{ head -c 512 plain.tar | tr 'a' 'b' && tail -c +513 plain.tar; } >damaged.tar
: >empty
printf 'hello, world\n%.0s' {1..100} >text
ingested out 3 damaged.tar empty text "$decode/jpeg_444.jpg" plain.tar
kept out 2
reason out shard_corrupt 4
head -c 10240 /dev/zero >zeros.tar
ingested out 0 zeros.tar
kept out 0

# two tars in one file: the second is not read, and that is said
cat plain.tar plain.tar >two.tar
ingested out 0 two.tar
same plain/shards out/shards
reason out trailing_data 1

# ---- compressed ----

gzip -nc plain.tar >plain.tar.gz
ingested out 0 plain.tar.gz
same plain/shards out/shards
{ head -c 3000 plain.tar | gzip -nc && tail -c +3001 plain.tar | gzip -nc; } >members.tar.gz
ingested out 0 members.tar.gz
same plain/shards out/shards
head -c $(($(stat -c %s plain.tar.gz) / 2)) plain.tar.gz >cut.tar.gz
ingested out 3 cut.tar.gz plain.tar
same plain/shards out/shards
if command -v zstd >/dev/null; then
  { head -c 3000 plain.tar | zstd -qc && tail -c +3001 plain.tar | zstd -qc; } >frames.tar.zst
  ingested out 0 frames.tar.zst
  same plain/shards out/shards
  head -c $(($(stat -c %s frames.tar.zst) / 2)) frames.tar.zst >cut.tar.zst
  ingested out 3 cut.tar.zst plain.tar
fi
