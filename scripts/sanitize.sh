#!/bin/sh
# Runs the mounted tests against a server whose C code is instrumented:
#     scripts/sanitize.sh asan|tsan [pytest arguments]
# Only the server runs so: tests/harness.py gives it EXCLFS_TEST_PYTHONPATH (as PYTHONPATH) and EXCLFS_TEST_PRELOAD (as
# LD_PRELOAD). It may run in the background with no stderr, so the findings go to files, and any file fails the run.
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
rm -rf "$build"
mkdir -p "$build/source" "$build/findings"
cp -R exclfs pyproject.toml README.md LICENSE "$build/source/"
rm -f "$build"/source/exclfs/mirror/*.so
echo "sanitize: building exclfs with $flags"
CFLAGS="-g -fno-omit-frame-pointer $flags" LDFLAGS="$flags" \
    .venv/bin/python -m pip --disable-pip-version-check install --no-deps --no-cache-dir \
    --target "$build/site" "$build/source" >"$build/build.log" 2>&1 || { cat "$build/build.log" >&2; exit 1; }
PYTHONPATH="$build/site" .venv/bin/python -P -c "import exclfs; assert exclfs.__file__.startswith('$build'), exclfs"

# CPython frees little at its end: a leak report would be about the interpreter. TSan cannot place its shadow memory
# under the address randomisation of newer kernels, hence setarch -R; the interpreter itself is not instrumented.
EXCLFS_TEST_PRELOAD=$(gcc -print-file-name=$runtime)
export EXCLFS_TEST_PRELOAD EXCLFS_TEST_PYTHONPATH="$build/site"
# libubsan overwrites the common options of libasan with its own: both get the same.
export ASAN_OPTIONS="detect_leaks=0:log_path=$build/findings/asan"
export UBSAN_OPTIONS="print_stacktrace=1:$ASAN_OPTIONS"
export TSAN_OPTIONS="halt_on_error=0:second_deadlock_stack=1:die_after_fork=0:log_path=$build/findings/tsan"
status=0
setarch -R .venv/bin/pytest -q -m mount "$@" || status=$?
for finding in "$build"/findings/*; do
    [ -e "$finding" ] || continue
    echo "sanitize: $finding"
    cat "$finding"
    status=1
done
exit $status
