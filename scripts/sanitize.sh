#!/bin/sh
# Runs tests against C code that is instrumented:
#     scripts/sanitize.sh asan|tsan [pytest arguments]
# First the mirror alone, in the tests' own process (tests/mirror); then every test that mounts, where only the server
# runs so: tests/harness.py gives it EXCLFS_TEST_PYTHONPATH (as PYTHONPATH) and EXCLFS_TEST_PRELOAD (as LD_PRELOAD),
# and builds its variants with EXCLFS_TEST_CFLAGS. A server may have no stderr, so the findings go to files. Any
# finding fails the run, but leaks that are not ours.
set -eu
cd "$(dirname "$0")/.."
kind=$1
shift
case $kind in
    asan) flags='-fsanitize=address,undefined -fno-sanitize-recover=undefined' runtime=libasan.so ;;
    tsan) flags='-fsanitize=thread' runtime=libtsan.so ;;
    *) echo "sanitize.sh: asan or tsan, not $kind" >&2; exit 2 ;;
esac
build=$PWD/build/$kind
python=$PWD/.venv/bin/python
rm -rf "$build"
mkdir -p "$build/site" "$build/findings"
export EXCLFS_TEST_CFLAGS="-g -fno-omit-frame-pointer $flags"
echo "sanitize: building exclfs with $flags"
PYTHONPATH=$PWD/tests "$python" -c \
    'import pathlib, sys, harness; harness.build_variant(pathlib.Path(sys.argv[1]))' "$build/site"

# The interpreter's own pools would hide an object's end from AddressSanitizer. CPython frees little at its own end, so
# leaks do not count as errors when they are found (exitcode=0): below, those that are ours are told from the others.
# libubsan overwrites the common options of libasan with its own, so both get the same.
export PYTHONMALLOC=malloc
export ASAN_OPTIONS="detect_leaks=1:log_path=$build/findings/asan"
export UBSAN_OPTIONS="print_stacktrace=1:$ASAN_OPTIONS"
export LSAN_OPTIONS="exitcode=0:max_leaks=0"
export TSAN_OPTIONS="halt_on_error=0:second_deadlock_stack=1:die_after_fork=0:log_path=$build/findings/tsan"
preload=$(gcc -print-file-name=$runtime)
status=0

# TSan cannot place its shadow memory under the address randomisation of newer kernels, hence setarch -R.
echo "sanitize: the mirror alone, with $kind"
LD_PRELOAD=$preload PYTHONPATH=$build/site setarch -R \
    "$python" -P -m pytest -q -p no:cacheprovider tests/mirror "$@" || status=$?
[ $status -ne 5 ] || [ $# -eq 0 ] || status=0 # pytest's word for none: the arguments chose only what mounts

echo "sanitize: mounted, with $kind"
export EXCLFS_TEST_PRELOAD="$preload" EXCLFS_TEST_PYTHONPATH="$build/site"
setarch -R "$python" -P -m pytest -q -p no:cacheprovider -m mount "$@" || status=$?

# A leak is ours if the function that allocated it is: the first frame below the sanitizer's own. What the kernel still
# has open when a mount is taken away by force (file_new, op_opendir) is never released by it, and goes with the server.
for finding in "$build"/findings/*; do
    [ -e "$finding" ] || continue
    ours=$(awk 'BEGIN { RS = ""; ORS = "\n\n" }
        /^(Direct|Indirect) leak/ { if ($0 ~ /#1 [^\n]*\/exclfs\/mirror\// && $0 !~ /#1 [^\n]* in (file_new|op_opendir) /) print; next }
        /LeakSanitizer: detected memory leaks/ || /^=+$/ || /^SUMMARY: AddressSanitizer: [0-9]+ byte/ { next }
        { print }' "$finding")
    [ -n "$ours" ] || continue
    printf 'sanitize: %s\n%s\n' "$finding" "$ours"
    status=1
done
exit $status
