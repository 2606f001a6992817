#!/bin/sh
# One check of everything that needs a GPU, for a bare machine lent for a few minutes: tools/gpu_check.py says what it looks at.
#
#   tools/gpu_check.sh wheels              where there is a network: fetch what such a machine lacks into .whl (git ignores it)
#   tools/gpu_check.sh [--minutes 4]       there, in the root of the checkout: install .whl offline into a temporary folder, check
#   tools/gpu_check.sh --tiny              here: the same on the CPU, as small as it gets
#
# The machine has torch, torchvision, transformers, timm, scipy, scikit-image, pytest with xdist and hypothesis; it lacks
# open_clip (and its ftfy, wcwidth), hotcoco, pycocotools, pydantic (and its three) and filelock. OUT is where the report goes, PYTHON which Python runs it.
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${PYTHON:-python3}

if [ "${1:-}" = wheels ]; then
    for name in open-clip-torch ftfy wcwidth hotcoco pycocotools pydantic pydantic-core annotated-types typing-inspection filelock; do
        wanted=$(sed -n "s/^\($name==[^ ]*\).*/\1/p" requirements.lock)
        "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
            --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
            --platform manylinux2014_x86_64 --dest .whl "$wanted" || exit 1
    done
    exec du -ch .whl/*.whl
fi

SITE=$(mktemp -d)
trap 'rm -rf "$SITE"' EXIT
if [ "${1:-}" != --tiny ] && ls .whl/*.whl >/dev/null 2>&1; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$SITE" .whl/*.whl ||
        echo "gpu_check: the wheels in .whl cannot be installed; going on without" >&2
fi
PYTHONPATH="$PWD/src:$PWD:$SITE${PYTHONPATH:+:$PYTHONPATH}" "$PYTHON" tools/gpu_check.py "$@"
