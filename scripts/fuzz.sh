#!/bin/sh
# Fuzzes the mirror's request parser with libFuzzer, AddressSanitizer and UBSan:
#     scripts/fuzz.sh [seconds]
# What it finds is left in build/fuzz; the corpus stays there from one run to the next.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
build=build/fuzz
mkdir -p "$build/corpus"

links() { echo 'int LLVMFuzzerTestOneInput(const unsigned char *d, unsigned long n) { return !d && n; }' |
    clang -x c -fsanitize=fuzzer,address,undefined - -o "$build/probe" 2>/dev/null; }
if ! links; then
    command -v apt-get >/dev/null || { echo 'fuzz.sh: this needs clang with libFuzzer' >&2; exit 1; }
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    echo 'fuzz: installing clang and libFuzzer'
    $as_root apt-get -qq update
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install clang >/dev/null
    version=$(clang -dumpversion | cut -d. -f1) # clang only recommends the runtime that has libFuzzer
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install \
        "libclang-rt-$version-dev" >/dev/null
    links || { echo 'fuzz.sh: clang is installed, and libFuzzer does not link' >&2; exit 1; }
fi
clang -std=gnu11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
    tests/fuzz/request.c exclfs/mirror/request.c -o "$build/request"
"$build/request" -max_total_time="$seconds" -max_len=512 -timeout=5 -print_final_stats=0 -verbosity=1 \
    -artifact_prefix="$build/found-" "$build/corpus" >"$build/log" 2>&1 || { tail -n 60 "$build/log"; exit 1; }
tail -n 2 "$build/log"
