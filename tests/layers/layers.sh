#!/bin/sh
# The tree keeps to the layer rules, and the check of them notices every kind of breach.
#
#     layers.sh ROOT
set -eu
check=$(dirname "$0")/check_includes.sh
root=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/agglo-layers-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
failed=0

# expect ok|breach FILE LINE: a tree of this one file passes or fails.
expect() {
    rm -rf "$work/tree"
    mkdir -p "$work/tree/$(dirname "$2")"
    printf '/* a file */\n%s\n' "$3" > "$work/tree/$2"
    if sh "$check" "$work/tree" > "$work/said" 2>&1; then got=ok; else got=breach; fi
    if [ "$got" != "$1" ]; then
        echo "the check says $got to $2 with: $3 (expected $1)"
        failed=1
    elif [ "$got" = breach ] && ! grep -q "^$2:2: " "$work/said"; then
        echo "the breach in $2 ($3) is not named: $(cat "$work/said")"
        failed=1
    fi
}

expect ok     base/a.c '#include "base/err.h"'
expect ok     base/a.c '#include <stdio.h>'
expect ok     base/a.c '/* #include "cli/cli.h" */'
expect breach base/a.c '#include "tensor/tensor.h"'
expect breach base/a.h '  #  include   "cli/cli.h" /* why not */'
expect breach base/a.c '#include <tensor/tensor.h>'
expect breach base/a.c '#include <base/err.h>'
expect breach base/a.c '#include "err.h"'
expect breach base/a.c '#include "../base/err.h"'
expect breach base/a.c '#include "base/../cli/cli.h"'
expect breach base/a.c '#include "tests/ref/ref.h"'
expect breach base/a.c '#include HEADER'
expect breach base/a.c '#include_next <stdio.h>'
expect ok     tensor/a.c '#include "base/err.h"'
expect breach tensor/a.c '#include "ingest/index.h"'
expect ok     ingest/a.c '#include "tensor/rng.h"'
expect breach ingest/a.c '#include "cache/cache.h"'
expect ok     cache/a.c '#include "base/err.h"'
expect breach cache/a.c '#include "tensor/rng.h"'
expect breach cache/a.c '#include "ingest/index.h"'
expect ok     teachers/a.c '#include "cache/cache.h"'
expect breach teachers/a.c '#include "student/model.h"'
expect ok     student/a.c '#include "cache/cache.h"'
expect breach student/a.c '#include "teachers/teacher.h"'
expect breach student/a.c '#include "schedule/step.h"'
expect ok     schedule/a.c '#include "student/step_plan.h"'
expect ok     schedule/a.c '#include "tensor/rng.h"'
expect breach schedule/a.c '#include "tensor/ops.h"'
expect breach schedule/a.c '#include "cache/cache.h"'
expect ok     launch/a.c '#include "schedule/step.h"'
expect breach launch/a.c '#include "cli/cli.h"'
expect ok     cli/a.c '#include "launch/train.h"'
expect ok     tensor/cpu/gemm_dnnl.c '#include <oneapi/dnnl/dnnl.h>'
expect breach tensor/cpu/gemm.c '#include <oneapi/dnnl/dnnl.h>'
expect breach tensor/dnnl.c '#include <dnnl.h>'
expect ok     cache/lmdb_file.c '#include <lmdb.h>'
expect ok     cli/print.c '#include <lmdb.h>'
expect breach cache/cache.c '#include <lmdb.h>'
expect ok     tensor/cuda/ln.cu '#include <cuda_runtime.h>'
expect breach tensor/ln.cuh '#include <cuda_runtime.h>'
expect breach launch/ranks.c '#include <cublasLt.h>'
expect breach teachers/clip.c '#include <cudnn.h>'
expect ok     tensor/backend.c '#include "tensor/cuda/backend_cuda.h"'

mkdir -p "$work/empty"
if sh "$check" "$work/empty" > /dev/null; then
    echo "the check passes a tree without sources"
    failed=1
fi
sh "$check" "$root" || failed=1
exit $failed
