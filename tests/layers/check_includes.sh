#!/bin/sh
# Checks every #include of the layer folders under a source root against the rules of docs/architecture.md: a folder includes what
# stands to its left, and a library is seen only by the files that wrap it. Prints one line per breach; fails if there is any.
#
#     check_includes.sh ROOT
set -eu
cd "$1"
layers="base tensor ingest cache teachers student schedule launch cli"

for layer in $layers; do
    if [ -d "$layer" ]; then
        find "$layer" -type f \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \)
    fi
done | LC_ALL=C sort | LC_ALL=C awk -v layers="$layers" '
function breach(why) {
    printf "%s:%d: %s\n", file, n, why
    n_breaches++
}
function check(line,    name, system_header, owner) {
    sub(/^[ \t]*#[ \t]*include[ \t]*/, "", line)
    if (line !~ /^("[^"]+"|<[^>]+>)/) {
        breach("an include that cannot be checked: " line)
        return
    }
    system_header = substr(line, 1, 1) == "<"
    name = substr(line, 2)
    sub(/[">].*/, "", name)
    owner = name
    sub(/\/.*/, "", owner)
    if (name ~ /(^|\/)\.\.?\//) {
        breach("\"" name "\" is not named from the root")
    } else if (owner in is_layer && name ~ /\//) {
        if (system_header)
            breach("<" name "> is ours: it takes quotes")
        if (!((layer, owner) in allowed) && !((layer, name) in allowed))
            breach(layer " may not include \"" name "\"")
    } else if (!system_header) {
        breach("\"" name "\" is not a file of a layer")
    }
    if (owner in is_layer && name ~ /\//)
        return
    if (name ~ /dnnl/ && file !~ /^tensor\/cpu\/[^\/]*dnnl[^\/]*$/)
        breach("<" name ">: oneDNN is seen by tensor/cpu/*dnnl* alone")
    if (name ~ /(^|\/)lmdb\.h$/ && file != "cache/lmdb_file.c" && file != "cli/print.c")
        breach("<" name ">: LMDB is seen by cache/lmdb_file.c alone (cli/print.c prints its version)")
    if (name ~ /(^|\/)(cuda|cublas|cudnn|cufft|curand|cusparse|cusolver|cutlass|cub\/|nvtx|nvToolsExt|nvrtc|mma\.h|cooperative_groups|device_launch)/ && file !~ /^tensor\/cuda\//)
        breach("<" name ">: CUDA is seen by tensor/cuda alone")
}
function allow(who, what,    list, i, k) {
    k = split(what, list, " ")
    for (i = 1; i <= k; i++)
        allowed[who, list[i]] = 1
}
BEGIN {
    n_layers = split(layers, list, " ")
    for (i = 1; i <= n_layers; i++)
        is_layer[list[i]] = 1
    allow("base", "base")
    allow("tensor", "base tensor")
    allow("ingest", "base tensor ingest")
    allow("cache", "base cache")
    allow("teachers", "base tensor ingest cache teachers")
    allow("student", "base tensor ingest cache student")
    allow("schedule", "base tensor/rng.h student schedule")
    allow("launch", "base tensor ingest cache teachers student schedule launch")
    allow("cli", layers)
}
{
    file = $0
    layer = file
    sub(/\/.*/, "", layer)
    n_files++
    n = 0
    while ((status = (getline line < file)) > 0) {
        n++
        sub(/\r$/, "", line)
        if (line ~ /^[ \t]*#[ \t]*(include_next|import)/)
            breach("only #include is used here")
        else if (line ~ /^[ \t]*#[ \t]*include/) {
            check(line)
            n_includes++
        }
    }
    if (status < 0) {
        n = 0
        breach("cannot be read")
    }
    close(file)
}
END {
    if (n_files == 0) {
        print "no sources found"
        exit 1
    }
    printf "%d files, %d includes, %d breaches\n", n_files, n_includes, n_breaches
    exit n_breaches > 0
}'
