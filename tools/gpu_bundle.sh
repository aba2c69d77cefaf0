#!/usr/bin/env bash
# Builds what tests/run_on_gpu.sh runs and puts it into build/gpu, and packed into build/gpu.tar.xz, with
# the libraries that a machine may lack: it needs nothing there but a driver and a glibc as new as this
# one's. Needs tools/setup_cuda.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

programs=(tests/test_ops_gpu tests/test_engine_gpu lorry)
[ -e build/cuda/build.ninja ] || cmake --preset cuda
cmake --build --preset cuda --target test_ops_gpu test_engine_gpu lorry
rm -rf build/gpu
mkdir -p build/gpu/lib
for program in "${programs[@]}"; do
  strip -o "build/gpu/$(basename "$program")" "build/cuda/$program"
done
# Everything but the C library and the loader, which belong to the machine.
ldd build/gpu/lorry build/gpu/test_* | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
  grep -vE '/(libc|libm|libdl|libpthread|librt|libresolv|libutil)\.so' |
  while read -r library; do cp -L "$library" build/gpu/lib/; done
strip --strip-unneeded build/gpu/lib/*
# The C++ library asks for the newest glibc of all: only for machines whose own is too old.
mkdir build/gpu/lib-c++
mv build/gpu/lib/libstdc++.so.* build/gpu/lib/libgcc_s.so.* build/gpu/lib-c++/
newest=$(for f in build/gpu/lorry build/gpu/test_* build/gpu/lib/*; do
  objdump -T "$f" 2>/dev/null | grep -oE 'GLIBC_2\.[0-9]+'
done | sort -uV | tail -n 1)
tar -C build -cf - gpu | xz -T1 -9 >build/gpu.tar.xz
echo "gpu_bundle: build/gpu.tar.xz, $(du -sh build/gpu.tar.xz | cut -f1), asks for ${newest:-GLIBC_?}"
