// What the backend needs of a device: its memory, one stream, copies. Two implementations: CUDA's
// (runtime.cu) and that of simt/ (simt/runtime.cpp). No C++ library headers: nvcc reads it too.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace lorry::cuda {

struct DeviceFacts {
  char name[256];
  size_t memory = 0, free = 0;
  int major = 0, minor = 0, processors = 0;
};

// Null where there is a device that can run the kernels; else a sentence that says what is missing.
const char* why_no_device();
DeviceFacts device_facts();
// Whether the device is one of compute capability 9.0, and the program has that code for it.
bool has_wgmma();

// The functions below need a device. One that fails for another reason than a lack of memory ends
// the program with the device's message: the device is lost.

void* allocate_device(size_t bytes);  // null: there is no room
void free_device(void* p);
void* allocate_pinned(size_t bytes);  // of the processor, for fast copies; null: there is no room
void free_pinned(void* p);
void pin(void* p, size_t bytes);
void unpin(void* p);

using Stream = void*;
Stream make_stream();
void free_stream(Stream s);
void wait(Stream s);
void copy_in(Stream s, void* to, const void* from, size_t bytes);
void copy_out(Stream s, void* to, const void* from, size_t bytes);
void copy_within(Stream s, void* to, const void* from, size_t bytes);  // not overlapping
void clear(Stream s, void* to, size_t pitch, size_t width, size_t rows);

}  // namespace lorry::cuda
