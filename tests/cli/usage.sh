# Help, versions, and wrong usage: one line, exit status 2, and the nearest name where there is one.
"$agglo" --help >help
for command in 'bench decode' 'bench ops' 'bench teacher' ingest teach train embed 'eval knn' 'eval zeroshot' 'eval distill' 'inspect dataset' 'inspect cache' 'inspect weights' 'weights init'; do
  grep -qF "  $command" help || fail "help has no '$command'"
  "$agglo" $command --help >one
  grep -q '^usage: agglo '"$command" one || fail "'$command --help' has no usage"
  grep -q '^example:' one || fail "'$command --help' has no example"
done

"$agglo" --version >version
grep -q '^agglo [0-9]' version || fail "no version"
"$agglo" --version --json >version.json
for library in onednn lmdb libjpeg-turbo libwebp libspng libarchive zstd; do
  grep -q "\"$library\": \"[0-9]" version.json || fail "no version of $library"
done

# anywhere, as every global option
"$agglo" --device cpu --version | cmp - version || fail "a global option before --version changes it"
"$agglo" ingest --version | cmp - version || fail "--version after a command changes it"

# results that cannot be written are a failure
expect 1 "standard output" sh -c '"$1" --version >/dev/full' - "$agglo"
expect 1 "standard output" sh -c '"$1" ingest --help >/dev/full' - "$agglo"

expect 2 "unknown command 'ingets', did you mean 'ingest'?" "$agglo" ingets
expect 2 "'agglo inspect' takes one of: dataset, cache, weights" "$agglo" inspect
expect 2 "'agglo eval' takes one of: knn, zeroshot, distill; not 'speed'" "$agglo" eval speed
for words in 'bench codec' 'inspect run' 'weights export' 'eval speed'; do # subcommands that do not exist have no help
  expect 2 "not '${words#* }'" "$agglo" $words --help
  expect 2 "not '${words#* }'" "$agglo" --threads 2 $words -h
done
"$agglo" bench --help >group
grep -q '  bench ops' group || fail "no help of a group: $(cat group)"
expect 2 "unknown option '--shard-sample', did you mean '--shard-samples'?" "$agglo" ingest x.tar --shard-sample 3
expect 2 "a command is missing" "$agglo" --threads 2
expect 2 "--out DATASET is missing" "$agglo" ingest x.tar
expect 2 "an argument is missing" "$agglo" train
expect 2 "too many arguments" "$agglo" train a b
expect 2 "--shard-samples takes a whole number, not 'many'" "$agglo" ingest x.tar --out d --shard-samples many
expect 2 "--shard-samples must lie in 1..1000000000, not 0" "$agglo" ingest x.tar --out d --shard-samples 0
expect 2 "--verify takes full|header, not 'half'" "$agglo" ingest x.tar --out d --verify half
expect 2 "--part takes I/N with 1 <= I <= N, not '3/2'" "$agglo" teach r.yaml --part 3/2
expect 2 "--sample" "$agglo" inspect dataset d --png x.png
expect 2 "unknown architecture 'vit-smal-16', did you mean 'vit-small-16'?" "$agglo" weights init vit-smal-16 --out w.safetensors
if ! "$agglo" --version | grep -q 'cuda .*built in, [^n]'; then # no GPU here
  expect 2 "cuda)" "$agglo" bench ops --device cuda
  expect 2 "cuda:1)" "$agglo" embed x.jpg --weights "$root/weights/clip-tiny.safetensors" --out x.safetensors --device cuda:1
fi
[ ! -e d ] || fail "wrong usage started something"

# global options stand before or after the command
"$agglo" -q weights init vit --set dim=32 --set depth=1 --set heads=2 --set patch=8 --set image=32 --seed 7 --out a.safetensors
"$agglo" weights init vit --set dim=32 --set depth=1 --set heads=2 --set patch=8 --set image=32 --seed 7 --out b.safetensors --json >init.json
[ "$(value init.json seed)" = 7 ] || fail "no seed"
same a.safetensors b.safetensors
"$agglo" weights init clip --set dim=64 --set depth=1 --set patch=8 --set image=32 --set proj=16 --seed 1 --out c.safetensors
"$agglo" inspect weights c.safetensors --json >c.json
[ "$(value c.json kind)" = teacher ] || fail "not a teacher"
[ "$(value c.json config dim)" = 64 ] || fail "wrong dim"
"$agglo" inspect weights a.safetensors >a.txt
grep -q 'a.safetensors: student vit' a.txt || fail "not a student: $(cat a.txt)"
