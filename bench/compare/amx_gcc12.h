// g++ 12's AMX intrinsics do not say which memory they read: the compiler leaves out stores to a
// tile configuration or a tile's source, and llama.cpp's AMX kernels end in a general protection
// fault. These say it. To be included at the top of ggml-cpu/amx/mmq.cpp.
#pragma once
#include <immintrin.h>

#undef _tile_loadd
#undef _tile_loadd_internal
#define _tile_loadd(tile, base, stride) _tile_loadd_internal(tile, base, stride)
#define _tile_loadd_internal(tile, base, stride)                                                  \
  asm volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"((const void*)(base)), "r"((long)(stride)) \
               : "memory")
#define _tile_loadconfig(config) asm volatile("ldtilecfg (%0)" ::"r"(config) : "memory")
