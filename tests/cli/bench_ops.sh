# Operators are timed beside the machine's limits: every line that is asked for, in figures that can be right.
"$agglo" bench ops --device cpu --threads 1 --batch 1 --seconds 0.001 --filter ViT-Ti --dtype f32 --json >ops.json
[ "$(value ops.json clock)" = processor ] || fail "one thread is not timed by the processor"
[ "$(value ops.json batch)" = 1 ] || fail "not the batch that was asked for"
for number in us best_us gb_per_s gflop_per_s percent_of_bound; do
  grep -q "\"$number\": " ops.json || fail "no $number"
done
awk '/"(us|best_us)": / && !($2 + 0 > 0) { print; bad = 1 } END { exit bad }' ops.json || fail "a time is not positive"
awk '/"(gb_per_s|gflop_per_s|percent_of_bound)": / && $2 !~ /^[0-9]+(\.[0-9])?,?$/ { print; bad = 1 } END { exit bad }' ops.json ||
  fail "a rate is no number" # on a busy machine one may round to 0.0
grep -m 1 '"what"' ops.json | grep -q '"forward b=1 n=197 d=192 f32"' || fail "the block is not the first line"
grep -q '"what": "linear m=197 n=768 k=192 gelu bias f32"' ops.json || fail "no product of ViT-Ti"
grep -q '"what": "attention_bwd b=1 n=197 h=3 d=64 f32"' ops.json || fail "no attention of ViT-Ti"
[ "$(grep -c '"label"' ops.json)" = "$(grep -c '"label": "ViT-Ti' ops.json)" ] || fail "lines that were not asked for"

"$agglo" bench ops --device cpu --threads 2 --batch 1 --seconds 0.001 --filter tokens_slice >ops.txt
grep -q 'time of day' ops.txt || fail "two threads are not timed by the time of day"
for type in f32 bf16; do
  [ "$(grep -c "^ViT-B/16 *tokens_slice.* $type " ops.txt)" = 2 ] || fail "not two lines in $type: $(cat ops.txt)"
done

expect 2 "no line contains --filter 'convolutoin'" "$agglo" bench ops --device cpu --filter convolutoin
expect 2 "--dtype takes f32|bf16|all, not 'f16'" "$agglo" bench ops --dtype f16
