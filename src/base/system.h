// What the machine offers this process.
#pragma once
#include <cstddef>
#include <string>

namespace lorry {

// Distinct physical cores among the CPUs that the process may run on; at least 1.
int physical_cores();

// Bytes that can be allocated without swapping, within the control group's limit when there is one.
size_t available_memory();

// The most memory that this process has had so far.
size_t peak_memory();

// For a process that runs for weeks: buffers of requests that are larger than most go back to the
// system when they are freed, and threads share a few heaps instead of having one each. Else memory
// grows by what the largest requests leave in every heap. Before threads are started.
void keep_heap_small();

// Gives the pages back that lie free within the heaps, below what is still in use: a few
// milliseconds where there are tens of MB, nothing where there are none. Any thread.
void trim_heap();

// As many open files as the system lets this process have: each connection is one.
void raise_file_limit();

// "model name" of the first CPU, or "unknown".
std::string cpu_name();

// "12.3 MB", "4.0 GB": powers of 1000.
std::string format_bytes(size_t bytes);

}  // namespace lorry
