# agglo embed: every kind of input, both kinds of output, the same features whichever way; hostile names; what cannot be read; a stop.
clip=$root/weights/clip-tiny.safetensors dinov2=$root/weights/dinov2-tiny.safetensors
embed() { "$agglo" -q embed --weights "$clip" "$@"; }

# header FILE: the header of a safetensors file
header() { dd if="$1" iflag=skip_bytes,count_bytes skip=8 count="$(od -An -t u8 -N 8 "$1" | tr -d ' ')" status=none; }

# tensor FILE NAME: the bytes of one tensor
tensor() {
  local n offsets
  n=$(od -An -t u8 -N 8 "$1" | tr -d ' ')
  offsets=$(header "$1" | awk -v name="\"$2\":" 'index($0, name) { s = substr($0, index($0, name));
    match(s, /"data_offsets":\[[0-9]+,[0-9]+\]/); print substr(s, RSTART + 16, RLENGTH - 17) }')
  [ -n "$offsets" ] || fail "$1 has no tensor $2"
  dd if="$1" iflag=skip_bytes,count_bytes skip=$((8 + n + ${offsets%,*})) count=$((${offsets#*,} - ${offsets%,*})) status=none
}

# keys FILE: names of its tensors, sorted
keys() { header "$1" | grep -o '"[^"]*":{"dtype"' | cut -d'"' -f2 | sort; }

mkdir -p photos/sub/deep bad
cp "$root"/tests/fixtures/preprocess/*.jpg photos
cp "$root"/tests/fixtures/preprocess/*.png photos/sub
cp "$root"/tests/fixtures/decode/webp_lossy.webp photos/sub/deep/a.b.webp
cp photos/small.jpg photos/small.png # a JPEG whatever its name; shares its key
n=$(find photos -type f | wc -l)
echo "not a picture" >photos/broken.jpg
head -c 3000 photos/gray.jpg >photos/sub/cut.jpg
echo "passed over" >photos/notes.txt
cp photos/small.jpg photos/x.seg.png # a mask

"$agglo" embed --weights "$clip" photos --out a.safetensors --json >a.json 2>log
[ "$(value a.json images)" = "$n" ] || fail "not all pictures: $(cat a.json log)"
[ "$(value a.json rejected)" = 2 ] || fail "not two rejects: $(cat a.json)"
grep -q "left out broken of photos: " log || fail "the broken picture is not named: $(cat log)"
grep -q "left out sub/cut of photos: " log || fail "the cut picture is not named: $(cat log)"
grep -qF "$((n + 2))/$((n + 2)) images" log || fail "no total: $(cat log)"
keys a.safetensors >names
[ "$(wc -l <names)" = $((2 * n)) ] || fail "tensors: $(cat names)"
for key in portrait sub/alpha sub/deep/a_b small; do
  grep -qxF $key/spatial names || fail "no $key: $(cat names)"
done
twin=$(grep '^small~[0-9]*/summary$' names) || fail "the second small has no key: $(cat names)"
[ "$(tensor a.safetensors small/summary | cksum)" = "$(tensor a.safetensors "$twin" | cksum)" ] || fail "two copies differ"

# the same bytes at any number of threads and any batch
embed photos --out b.safetensors --threads 1 --batch 1 >/dev/null 2>&1
same a.safetensors b.safetensors
embed photos --out b.safetensors --threads 3 --batch 7 >/dev/null 2>&1
same a.safetensors b.safetensors

# a folder of .npy holds the same values, under the same keys
embed photos --out npy >/dev/null 2>&1
[ "$(find npy -name '*.npy' | wc -l)" = $((2 * n)) ] || fail "files: $(find npy)"
for key in portrait sub/alpha sub/deep/a_b; do
  for what in summary spatial; do
    tensor a.safetensors $key/$what >t
    tail -c +129 npy/$key.$what.npy | cmp -s - t || fail "$key.$what.npy holds other values"
  done
done
grep -q '"weights_sha256": "[0-9a-f]\{64\}"' npy/embed.json || fail "embed.json: $(cat npy/embed.json)"
expect 1 "holds features of another kind: size is 32 there and 48 here" "$agglo" embed --weights "$clip" photos --out npy --size 48
expect 1 "holds features of another kind: arch is clip" "$agglo" embed --weights "$dinov2" photos --out npy
embed photos --out half.safetensors --dtype fp16 --summary-only >/dev/null 2>&1
[ "$(keys half.safetensors | wc -l)" = "$n" ] || fail "not one tensor a picture"
[ "$(tensor half.safetensors portrait/summary | wc -c)" = 128 ] || fail "not 64 halves"

# the same pictures as single files, a glob, tars and a dataset
embed photos/portrait.jpg 'photos/sub/*.png' photos/sub/deep/a.b.webp --out files.safetensors >/dev/null
[ "$(keys files.safetensors | grep summary | tr '\n' ' ')" = "a_b/summary alpha/summary palette/summary portrait/summary " ] ||
  fail "keys: $(keys files.safetensors)"
[ "$(tensor files.safetensors alpha/spatial | cksum)" = "$(tensor a.safetensors sub/alpha/spatial | cksum)" ] || fail "a file's features differ"
(cd photos && tar -cf ../photos.tar --sort=name -- landscape.jpg odd.jpg portrait.jpg broken.jpg sub/palette.png)
gzip -k photos.tar
embed photos.tar --out tar.safetensors >/dev/null 2>&1
embed photos.tar.gz --out gz.safetensors >/dev/null 2>&1
same tar.safetensors gz.safetensors
if command -v zstd >/dev/null; then
  zstd -q photos.tar
  embed photos.tar.zst --out zst.safetensors >/dev/null 2>&1
  same tar.safetensors zst.safetensors
fi
"$agglo" -q embed --weights "$clip" - --out stdin.safetensors <photos.tar >/dev/null 2>&1
same tar.safetensors stdin.safetensors
"$agglo" -q ingest photos.tar --out dataset >/dev/null
embed dataset --out dataset.safetensors >/dev/null
same tar.safetensors dataset.safetensors
[ "$(tensor tar.safetensors sub/palette/summary | cksum)" = "$(tensor a.safetensors sub/palette/summary | cksum)" ] || fail "a tar's features differ"

# further files when one is full; what came before under a key keeps it
embed photos.tar photos.tar --out many.safetensors --per-file 3 --json >many.json 2>/dev/null
[ "$(value many.json images)" = 8 ] || fail "not eight pictures: $(cat many.json)"
[ "$(keys many.safetensors | wc -l)/$(keys many-2.safetensors | wc -l)/$(keys many-3.safetensors | wc -l)" = 6/6/4 ] || fail "files: $(ls)"
for f in many*.safetensors; do keys "$f"; done >names
grep -q '^odd~[0-9]*/summary$' names || fail "the second odd has no key"
[ "$(header many-2.safetensors | grep -c '"part":"2"')/$(header many.safetensors | grep -c '"part"')" = 1/0 ] || fail "no number in the second file"

# numbered files are one result: what an earlier run had more of goes, and what another wrote is not replaced
embed photos.tar photos.tar --out many.safetensors --per-file 5 >/dev/null 2>&1
[ "$(echo many*.safetensors)" = "many-2.safetensors many.safetensors" ] || fail "files of an earlier run stay: $(ls)"
embed photos.tar photos.tar --out many.safetensors --per-file 2 >/dev/null 2>&1
rm many-2.safetensors
cp many.safetensors many-7.safetensors # no part of the result
embed photos.tar --out many.safetensors >/dev/null 2>&1
[ "$(echo many*.safetensors)" = "many-7.safetensors many.safetensors" ] || fail "behind a gap files of an earlier run stay: $(ls)"
embed photos.tar --out many-2.safetensors >/dev/null 2>&1
cp many-2.safetensors others
expect 2 "many-2.safetensors is there, and is not file 2 of an earlier many.safetensors" "$agglo" embed --weights "$clip" photos.tar --out many.safetensors --per-file 1
embed photos.tar --out many.safetensors >/dev/null 2>&1
same many-2.safetensors others

# what the cache holds of a view that is the whole picture is what embed says of it
mkdir square
cp photos/square.jpg photos/exact.jpg square
"$agglo" -q ingest square --out squares >/dev/null
recipe whole.yaml
sed -i 's,^dataset: .*,dataset: squares,; /^val:/d; s,^views: .*,views: {count: 1\, scale: [1.0\, 1.0]\, ratio: [1.0\, 1.0]\, decode: exact},; s,batch: 8},batch: 8\, codec: fp32},' whole.yaml
"$agglo" -q teach whole.yaml >/dev/null
embed squares --out squares-npy >/dev/null
for key in square exact; do
  "$agglo" -q inspect cache cache --sample $key --view 0 --teacher clip --npy cached >/dev/null
  same cached.summary.npy squares-npy/$key.summary.npy
  same cached.spatial.npy squares-npy/$key.spatial.npy
done

# names that are up to no good stay inside
mkdir evil
cp photos/small.jpg evil/x.jpg
tar -cf evil.tar -P --transform='s,.*,../../outside.jpg,' evil/x.jpg
tar -rf evil.tar -P --transform="s,.*,$work/absolute.jpg," evil/x.jpg
tar -rf evil.tar -P --transform='s,.*,a/./.hidden/..//b.jpg,' evil/x.jpg
tar -rf evil.tar -P --transform='s,.*,n.summary.npy/c.jpg,' evil/x.jpg
tar -rf evil.tar -P --transform='s,.*,n.jpg,' evil/x.jpg
tar -rf evil.tar -P --transform="s,.*,$(printf 'z%.0s' $(seq 200)).jpg," evil/x.jpg
tar -rf evil.tar -P --transform='s,.*,embed.json/x.jpg,' evil/x.jpg # what describes the folder
tar -rf evil.tar -P --transform='s,.*,m.jpg,' evil/x.jpg
tar -rf evil.tar -P --transform='s,.*,m~10.jpg,' evil/x.jpg
tar -rf evil.tar -P --transform='s,.*,/m.jpg,' evil/x.jpg # the tenth: both m and m~10 are taken
mkdir inner
embed evil.tar --out inner/npy >/dev/null 2>log || fail "hostile names: $(cat log)"
[ -z "$(find . -maxdepth 1 -name '*outside*' -o -maxdepth 1 -name 'absolute*')" ] || fail "a name led outside: $(ls)"
[ "$(find inner -name '*.summary.npy' -type f | wc -l)" = 10 ] || fail "not ten pictures: $(find inner) $(cat log)"
for key in embed.json_/x m m~10 m~10~2; do [ -f inner/npy/$key.spatial.npy ] || fail "no $key: $(find inner)"; done
[ -z "$(find inner/npy -name '.*' ! -name .)" ] || fail "hidden files: $(find inner/npy -name '.*')"
embed evil.tar --out inner/evil.safetensors >/dev/null 2>&1
keys inner/evil.safetensors | grep -q '\.\./' && fail "a key leads outside: $(keys inner/evil.safetensors)"

# a key that the folder has no place for costs itself
mkdir -p held/portrait.summary.npy
echo mine >held/sub
expect 0 "left out sub/alpha of photos: there can be no folder for its key, sub/alpha" "$agglo" -q embed --weights "$clip" photos --out held
grep -qF "left out portrait of photos: there can be no file for its key, portrait" stderr || fail "the folder in the way: $(cat stderr)"
[ "$(cat held/sub)/$(find held -name '*.spatial.npy' | wc -l)" = mine/$((n - 1 - $(find photos/sub -type f ! -name cut.jpg ! -name '*.seg.png' | wc -l))) ] || fail "the rest: $(find held)"

# what cannot be read
cp a.safetensors before.safetensors
expect 3 "none.jpg: No such file" "$agglo" embed --weights "$clip" none.jpg photos/odd.jpg no.tar --out some.safetensors --json
cp stdout some.json
[ "$(value some.json images)" = 1 ] || fail "the rest was not done: $(cat some.json)"
grep -q '"source": "no.tar"' some.json || fail "the tar is not named: $(cat some.json)"
head -c 40000 photos.tar >cut.tar
expect 3 "cut.tar" "$agglo" embed --weights "$clip" cut.tar --out cut.safetensors
[ "$(keys cut.safetensors | grep -c summary)" -ge 1 ] || fail "nothing of the cut tar"
expect 1 "none of the pictures could be embedded" "$agglo" -q embed --weights "$clip" photos/broken.jpg --out a.safetensors
same a.safetensors before.safetensors
expect 2 "matches no file" "$agglo" embed --weights "$clip" 'nothing*' --out x.safetensors
expect 2 "--out FILE.safetensors|DIR is missing" "$agglo" embed --weights "$clip" photos
expect 2 "--weights FILE is missing" "$agglo" embed photos --out x.safetensors
mkdir folder.safetensors
expect 2 "is a folder" "$agglo" embed --weights "$clip" photos --out folder.safetensors
expect 2 "size 33 is no multiple of the patch 4" "$agglo" embed --weights "$clip" photos --out x.safetensors --size 33
expect 2 "the weights are of family clip, dinov2-base is of family dinov2" "$agglo" embed --weights "$clip" photos --out x.safetensors --arch dinov2-base
expect 2 "the weights have dim 128, clip-vit-base-32 has 768" "$agglo" embed --weights "$clip" photos --out x.safetensors --arch clip-vit-base-32
expect 2 "this is a teacher" "$agglo" embed --weights "$clip" photos --out x.safetensors --head clip
expect 1 "cannot write file" "$agglo" embed --weights "$clip" photos --out nowhere/x.safetensors
[ ! -e x.safetensors ] || fail "a failed run left a file"

expect 1 "none of the pictures could be embedded" "$agglo" -q embed --weights "$clip" - --out x.safetensors <photos/odd.jpg
grep -qF "standard input takes a tar, and this is a picture" stderr || fail "a picture on standard input: $(cat stderr)"

# what seems to be a picture and is none is named, and a folder that cannot be read is lost; root must do without its right to read everything
mkdir -p odd/locked
cp photos/odd.jpg odd
cp photos/odd.jpg odd/locked
ln -s nowhere odd/gone.jpg
mkfifo odd/pipe.jpg
chmod 0 odd/locked
as_user=()
if [ "$(id -u)" = 0 ]; then as_user=(setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-dac_override,-dac_read_search --); fi
if "${as_user[@]}" true 2>/dev/null; then
  expect 3 "cannot read all of odd/locked: a folder that cannot be read" "${as_user[@]}" "$agglo" embed --weights "$clip" odd --out odd.safetensors --json
  cp stdout odd.json
  grep -qF "left out gone.jpg of odd: a link to nothing" stderr || fail "the link is not named: $(cat stderr)"
  grep -qF "left out pipe.jpg of odd: a device, a pipe or a socket" stderr || fail "the pipe is not named: $(cat stderr)"
  [ "$(value odd.json images)/$(value odd.json rejected)" = 1/2 ] || fail "counts: $(cat odd.json)"
  grep -q '"source": "odd/locked"' odd.json || fail "the folder is not in the report: $(cat odd.json)"
fi
chmod 700 odd/locked

# a student and its heads
"$agglo" -q weights init vit --set dim=32 --set depth=2 --set heads=2 --set patch=4 --set image=32 --seed 1 --out student.safetensors >/dev/null
"$agglo" -q embed --weights student.safetensors photos/odd.jpg --out student-npy >/dev/null
[ "$(stat -c %s student-npy/odd.spatial.npy)" = $((128 + 4 * 8 * 8 * 32)) ] || fail "the student's features have another size"
expect 2 "the student is vit, not dinov2" "$agglo" embed --weights student.safetensors photos/odd.jpg --out x.safetensors --arch dinov2
expect 2 "the student has no head 'sam', it has none" "$agglo" embed --weights student.safetensors photos/odd.jpg --out x.safetensors --head sam
expect 2 "--pos-interp is for teachers" "$agglo" embed --weights student.safetensors photos/odd.jpg --out x.safetensors --pos-interp hf

# positions at another size by either rule; a model's own size needs none
for rule in hub hf; do embed photos/odd.jpg --out $rule.safetensors --size 48 --pos-interp $rule >/dev/null; done
[ "$(tensor hub.safetensors odd/summary | cksum)" != "$(tensor hf.safetensors odd/summary | cksum)" ] || fail "the rule makes no difference"

# a stop: nothing half-written, nothing left, what an earlier run wrote stays; the run would take hours, and is stopped once files wait for its end
"$agglo" -q weights init clip --set dim=256 --set depth=8 --set patch=8 --set image=128 --seed 1 --out slow.safetensors >/dev/null
mkdir out
embed photos.tar --out out/f.safetensors --per-file 3 >/dev/null 2>&1
cp -r out before
# shellcheck disable=SC2046
"$agglo" embed --weights slow.safetensors $(yes photos/large.jpg | head -n 50000) --out out/f.safetensors --batch 2 --per-file 2 >/dev/null 2>log &
pid=$!
until [ "$(find out -name '.tmp-*-f-3.safetensors' | wc -l)" -gt 0 ]; do
  kill -0 $pid 2>/dev/null || fail "it ended by itself: $(cat log)"
  sleep 0.05
done
kill -TERM $pid
status=0
wait $pid || status=$?
[ $status = 1 ] || fail "stopped with $status: $(cat log)"
grep -q "stopped by signal" log || fail "no word of the signal: $(cat log)"
same before out
