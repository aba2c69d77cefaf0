#!/usr/bin/env bash
# Assembles what compiles the CUDA backend in build/cuda-toolkit, from NVIDIA's Python wheels: no root,
# no GPU and no driver needed. About 280 MB. A toolkit that is installed already is used instead by
# cmake -DCUDAToolkit_ROOT=FOLDER. docs/cuda.md says how to build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=13.0
root=$PWD/build/cuda-toolkit
venv=build/cuda-venv

if [ "$(cat "$root/version" 2>/dev/null)" = "$version" ] && "$root/bin/nvcc" --version >/dev/null 2>&1; then
  echo "setup_cuda: everything is there ($("$root/bin/nvcc" --version | tail -n 1))"
  exit
fi
echo "setup_cuda: fetching the CUDA $version compiler and runtime"
mkdir -p build
python3 -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check \
  "cuda-toolkit[nvcc,crt,nvvm,cccl,cudart]==$version.*"
wheels=$(echo "$PWD/$venv"/lib/python3*/site-packages/nvidia/cu13)
[ -x "$wheels/bin/nvcc" ] || {
  echo "setup_cuda: $wheels/bin/nvcc is missing: the wheels have another layout than expected" >&2
  exit 1
}

# The wheels' folders in a toolkit's own shape. nvcc.profile is read by where it lies: a real file.
rm -rf "$root"
mkdir -p "$root"
for folder in bin include nvvm; do cp -as "$wheels/$folder" "$root/"; done
cp -as "$wheels/lib" "$root/lib64"
ln -s lib64 "$root/lib"
cp --remove-destination "$wheels/bin/nvcc.profile" "$root/bin/nvcc.profile"
for library in "$root"/lib64/*.so.*; do
  [ -e "${library%.so.*}.so" ] || ln -s "$(basename "$library")" "${library%.so.*}.so"
done
echo "$version" >"$root/version"
echo "setup_cuda: $("$root/bin/nvcc" --version | tail -n 1) in build/cuda-toolkit"
