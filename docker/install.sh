#!/bin/sh
# A lock into a virtual environment, without what no step uses: headers, compilers, tests, MLflow's web page, Arrow's
# network protocol, an accelerator for browsers.
set -eu
python -m venv /opt/tfmot-ops/venv
/opt/tfmot-ops/venv/bin/pip install --no-deps --require-hashes -r "$1"
cd /opt/tfmot-ops/venv/lib/python3*/site-packages
rm -rf tensorflow/include pyarrow/include clang pip pip-*.dist-info mlflow/server/js pyarrow/*flight* \
  ai_edge_litert/libLiteRtWebGpuAccelerator.so ai_edge_litert/tools/apply_plugin_main
find . -type d \( -name tests -o -name testdata \) -prune -exec rm -rf {} +
