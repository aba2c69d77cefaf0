# The CUDA backend (docs/cuda.md). LORRY_CUDA=ON needs a toolkit: tools/setup_cuda.sh assembles one in
# build/cuda-toolkit, or CUDAToolkit_ROOT names another.
option(LORRY_CUDA "Build the CUDA backend" OFF)
set(LORRY_CUDA_ARCHITECTURES "90a" CACHE STRING "Compute capabilities that get code: 80, 89, 90a ...")

# lorry_cuda_kernels(TARGET FOLDER): the .cu files of a folder as objects.
function(lorry_cuda_kernels target folder)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${folder}/*.cu)
  add_library(${target} OBJECT ${sources})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/include)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${LORRY_CUDA_ARCHITECTURES}"
    POSITION_INDEPENDENT_CODE ON)
  # a*b+c is fused where the source says fmaf alone, as on the processor.
  target_compile_options(${target} PRIVATE --expt-relaxed-constexpr --fmad=false -O3 --threads 1)
endfunction()

if(NOT LORRY_CUDA)
  return()
endif()
set(assembled ${CMAKE_SOURCE_DIR}/build/cuda-toolkit)
if(NOT DEFINED CUDAToolkit_ROOT AND EXISTS ${assembled}/bin/nvcc)
  set(CUDAToolkit_ROOT ${assembled})
endif()
find_program(LORRY_NVCC nvcc HINTS ${CUDAToolkit_ROOT}/bin $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
if(NOT LORRY_NVCC)
  message(FATAL_ERROR
    "LORRY_CUDA is on and nvcc is not found: run tools/setup_cuda.sh, or set CUDAToolkit_ROOT")
endif()
set(CMAKE_CUDA_COMPILER ${LORRY_NVCC})
set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
set(CMAKE_CUDA_ARCHITECTURES ${LORRY_CUDA_ARCHITECTURES})
enable_language(CUDA)
# CMake 3.25 does not know that nvcc has C++20.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()

# The runtime is part of the program, which so starts on a machine without CUDA and says so.
get_filename_component(cuda_bin ${LORRY_NVCC} DIRECTORY)
find_library(LORRY_CUDART cudart_static HINTS ${cuda_bin}/../lib64 ${cuda_bin}/../lib REQUIRED)
add_library(lorry_cudart INTERFACE)
add_library(lorry::cudart ALIAS lorry_cudart)
target_link_libraries(lorry_cudart INTERFACE ${LORRY_CUDART} Threads::Threads ${CMAKE_DL_LIBS} rt)
