#!/usr/bin/env bash
# distfs from outside, with nothing but curl: files of 10 to 600 MB go in one after another, come back,
# and are compared by sha256. Everything is removed at the end, also when something fails.
#
#   make integration-test                                  # against http://127.0.0.1:8080 (make run)
#   DISTFS_URL=http://files.example:8080 make integration-test
#
# When nothing answers there, a distfs of its own is started for the test, and stopped and removed after it.
# SIZES_MB="1 3" chooses other sizes. PYTHON chooses the Python that distfs is installed for.
set -euo pipefail
cd "$(dirname "$0")/.."

url=${DISTFS_URL:-http://127.0.0.1:8080}
sizes_mb=${SIZES_MB:-10 50 100 300 600}
python=${PYTHON:-python3}

work=$(mktemp -d "${TMPDIR:-/tmp}/distfs-integration.XXXXXX")
distfs_pid=
uuids=()
sums=() # sums[i] is the sha256 of the file that uuids[i] names

say() { printf '%s\n' "$*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

# --- at the end, whatever happened -----------------------------------------------------------------

clean_up() {
    local outcome=$?
    trap - EXIT
    set +e
    if ((${#uuids[@]})); then
        for uuid in "${uuids[@]}"; do
            curl --silent --max-time 30 --output /dev/null --request DELETE "$url/files/$uuid"
        done
    fi
    if [[ -n $distfs_pid ]]; then
        kill -TERM "$distfs_pid" 2>/dev/null
        wait "$distfs_pid"
        ((outcome)) && cat "$work/distfs.log" >&2
    fi
    rm -rf "$work"
    exit "$outcome"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the steps ---------------------------------------------------------------------------------------

answers() { curl --silent --fail --max-time 10 --output /dev/null "$url/readyz"; }

start_distfs() {
    say "nothing answers at $url: starting a distfs of our own"
    # With the defaults: the settings of this machine's distfs may name a MetaDB that is not for tests.
    env -u DISTFS_METADB_URL "$python" -m distfs up --config /dev/null --data "$work/data" --port 0 \
        >"$work/ready" 2>"$work/distfs.log" &
    distfs_pid=$!
    for ((tenths = 0; tenths < 1200; tenths++)); do
        url=$(grep --only-matching --max-count=1 'http://[^ ]*' "$work/ready") && return
        kill -0 "$distfs_pid" 2>/dev/null || fail "distfs did not start"
        sleep 0.1
    done
    fail "distfs was not ready within 2 minutes"
}

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1
}

generate() { # <MB> <file>: random bytes, so that nothing can be made smaller or guessed
    head -c "$(($1 * 1000 * 1000))" /dev/urandom >"$2"
}

upload() { # <file>: prints the UUID
    local status
    status=$(curl --silent --show-error --form "file=@$1" --output "$work/answer" --write-out '%{http_code}' "$url/upload")
    [[ $status == 201 ]] || fail "upload of $mb MB: $status $(cat "$work/answer")"
    cat "$work/answer"
}

download() { # <UUID> <file>
    curl --silent --show-error --fail --output "$2" "$url/download/$1"
}

delete() { # <UUID>: gone afterwards
    curl --silent --show-error --fail --output /dev/null --request DELETE "$url/files/$1"
    local status
    status=$(curl --silent --output /dev/null --write-out '%{http_code}' "$url/download/$1")
    [[ $status == 404 ]] || fail "$1 was deleted and still answers $status"
}

# --- the demo ----------------------------------------------------------------------------------------

answers || start_distfs
say "testing $url"

for mb in $sizes_mb; do
    generate "$mb" "$work/file"
    began=$SECONDS
    uuid=$(upload "$work/file")
    uuids+=("$uuid")
    sums+=("$(sha256 "$work/file")")
    say "up    $mb MB  $uuid  $((SECONDS - began)) s"
    rm "$work/file"
done

for i in "${!uuids[@]}"; do
    began=$SECONDS
    download "${uuids[i]}" "$work/file"
    [[ $(sha256 "$work/file") == "${sums[i]}" ]] || fail "${uuids[i]} came back changed"
    say "down  $(($(wc -c <"$work/file") / 1000000)) MB  ${uuids[i]}  $((SECONDS - began)) s, sha256 is right"
    rm "$work/file"
done

for uuid in "${uuids[@]}"; do
    delete "$uuid"
done
uuids=()
say "PASSED: every file came back byte for byte, and is deleted"
