#!/bin/sh
# Every header of the layers compiles alone, and twice, without a warning; as C++ the *_impl.h are left out. Those of tensor/cuda
# need the CUDA toolkit and are compiled by the build that has it.
#
#     headers.sh ROOT STANDARD COMPILER [FLAG...]         STANDARD: c11 or c++17; a COMPILER that was not found is skipped (77)
set -eu
root=$(cd "$1" && pwd) standard=$2 compiler=$3
shift 3
case $compiler in
'' | *-NOTFOUND)
    echo "skipped: no compiler for $standard"
    exit 77
    ;;
esac
case $standard in
c11) language=c left_out='-name none' ;;
c++17) language=c++ left_out='-name *_impl.h' ;;
*)
    echo "unknown standard $standard"
    exit 1
    ;;
esac
work=$(mktemp -d "${TMPDIR:-/tmp}/agglo-headers-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

compile() ( # compile ROOT HEADER [FLAG...]
    cd "$1"
    printf '#include "%s"\n#include "%s"\n' "$2" "$2" > "$work/unit"
    shift 2
    "$compiler" -x $language -std=$standard -pedantic -Wall -Wextra -Werror -fsyntax-only -D_GNU_SOURCE -I. "$@" "$work/unit"
)

# What the check must notice: a header that leans on an include of its user, and one that cannot be included twice.
printf '#ifndef A_H\n#define A_H\nsize_t a(void);\n#endif\n' > "$work/leaning.h"
printf 'struct b {\n    int x;\n};\n' > "$work/unguarded.h"
printf '#ifndef C_H\n#define C_H\n#include <stddef.h>\nsize_t c(void);\n#endif\n' > "$work/sound.h"
for bad in leaning unguarded; do
    if compile "$work" $bad.h > /dev/null 2>&1; then
        echo "a header that is $bad passes"
        exit 1
    fi
done
compile "$work" sound.h

cd "$root"
set -f # left_out holds a pattern for find
find base tensor ingest cache teachers student schedule launch cli -name '*.h' ! -path 'tensor/cuda/*' ! $left_out > "$work/list"
failed=0 n=0
while read -r header; do
    n=$((n + 1))
    compile "$root" "$header" "$@" < /dev/null || failed=1
done < "$work/list"
echo "$n headers as $standard"
[ $n -gt 0 ] && exit $failed
echo "no headers found"
exit 1
