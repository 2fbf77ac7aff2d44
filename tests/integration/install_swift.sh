#!/usr/bin/env bash
# Installs the object store that tests/integration/test_object_store.py runs against: OpenStack Swift, which
# speaks S3, in an environment of its own (80 MB). Quick when it is there already.
set -euo pipefail
cd "$(dirname "$0")/../.."

target="${SWIFT_VENV:-build/swift}"
wanted="swift==2.38.3"
if ! "$target/bin/python" -m pip freeze 2>/dev/null | grep -qx "$wanted"; then
    python3 -m venv "$target"
    "$target/bin/python" -m pip install --quiet "$wanted"
fi
