// Ranks that mpirun has started, on one host or several, over OpenMPI. Its library is loaded when
// it is asked for: a machine without it runs everything else.
#pragma once
#include <memory>
#include <string>

#include "parallel/comm.h"

namespace lorry {

// The group of all ranks of this mpirun. To be made once, on a thread that lives as long. Throws
// Error(unavailable) where libmpi.so.40 (OpenMPI 3 to 5) cannot be loaded or started.
std::unique_ptr<Comm> make_mpi_comm();

// The library's name where it can be loaded; empty where not.
std::string mpi_library();

}  // namespace lorry
