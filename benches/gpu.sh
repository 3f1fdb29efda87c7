#!/usr/bin/env bash
# Everything there is to learn about the CUDA kernels on a machine with an NVIDIA GPU: correctness, compute-sanitizer, ceilings of the card,
# every operation against them and beside cuDNN, steps and sampling beside PyTorch, a whole training run. JSON out, and README's table.
# benches/README.md tells more; the steps stand in gpu_suite.py.
#
#   benches/gpu.sh [--quick] [--only STEP[:PART],...] [--data SOURCE] [--out DIR]    builds with cargo, runs, writes benches/results/...
#   benches/gpu.sh --dry-run                                                  only prints what would be run, and how to divide it into short calls
#   benches/gpu.sh --write-readme [RESULTS]                                   README's table of a results folder, or of none
#   benches/gpu.sh --pack DIR                                                 builds and fills DIR for a machine without cargo; there:
#   DIR/benches/gpu.sh                                                        or benches/gpu.sh --bin DIR
#
# Needs Python 3.9 or newer (PYTHON names another one than python3) and nothing from PyPI; the comparison with PyTorch needs torch.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
    echo "gpu.sh: $python is not a Python of 3.9 or newer; name one: PYTHON=/path/to/python3 $0" >&2
    exit 2
fi
exec "$python" "$here/gpu_suite.py" "$@" </dev/null
