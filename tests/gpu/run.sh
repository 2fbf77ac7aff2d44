#!/bin/bash
# run.sh [FILE.md]: all that a GPU is needed for, in at most eight minutes on one GPU, without a network: the GPU
# tests, then benchmarks in the order of their worth. Writes FILE.md (default: $OUT/gpu.md, or gpu.md here) after
# each part. The exit status is 1 if a part failed or if the fused attention did not run. Without a GPU it tests its
# own commands on the CPU.
#
# The machine needs Python 3.11+, torch with CUDA, and for the fused attention gcc and Python.h. What else it lacks
# can be carried beside the checkout (WHEELS=FOLDER): on a machine with a network and the same Python
#   pip download --no-deps -d FOLDER webdataset braceexpand jsonargparse typeshed-client docstring-parser
set -uo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
file=$(realpath -m "${1:-${OUT:+$OUT/}gpu.md}")
mkdir -p "$(dirname "$file")"
[ -z "${WHEELS:-}" ] || WHEELS=$(realpath "$WHEELS")
cd "$repo"
python=$(command -v python3 || command -v python)
export PYTHONPATH=$repo${PYTHONPATH:+:$PYTHONPATH}
if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
    export PYTHONPATH=$PYTHONPATH:$site
fi
"$python" -m awtpn.bench.gpu.session --out "$file" "${@:2}"
status=$?
[ -s "$file" ] || echo "FAILED: nothing was measured, exit status $status" >"$file"
exit $status
