#!/usr/bin/env bash
# Runs make.py in an environment of its own, which is built when it is missing or stale:
#   examples/emoji/make.sh sheets            the sheets of the package, cogview_jax/assets/emoji
#   examples/emoji/make.sh folder --out DIR  the large set, for `data.source.kind=folder`
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
environment="$here/../../.cache/emoji/venv"
if [[ ! "$environment/.stamp" -nt "$here/requirements.txt" ]]; then
    "${PYTHON:-python3}" -m venv --clear "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
        --requirement "$here/requirements.txt"
    touch "$environment/.stamp"
fi
exec "$environment/bin/python" "$here/make.py" "$@"
