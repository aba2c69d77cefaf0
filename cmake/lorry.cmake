# Compiler settings, and the functions that the folders call: lorry_library, lorry_binary, lorry_tests.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, Debug or Sanitize" FORCE)
endif()
# -g1 keeps line numbers for backtraces at a tenth of -g's link time and size.
set(CMAKE_CXX_FLAGS_RELEASE "-O2 -g1 -DNDEBUG")
set(CMAKE_CXX_FLAGS_DEBUG "-O0 -g")
set(CMAKE_CXX_FLAGS_SANITIZE "-O1 -g1")

set(LORRY_SANITIZE "" CACHE STRING "Sanitizers of this build, as for -fsanitize=; empty for none")

# Flags of everything that is ours. No -march: the instruction set is chosen at run time.
add_library(lorry_flags INTERFACE)
target_compile_options(lorry_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror
  # a*b+c is fused where the source says fma and nowhere else: the results' bits depend on it.
  -ffp-contract=off
  -ffunction-sections -fdata-sections)
target_compile_definitions(lorry_flags INTERFACE
  # 1 where LORRY_DCHECK checks: every build but the release one. LORRY_CHECK always does.
  LORRY_DCHECKS=$<IF:$<CONFIG:Release>,0,1>)
target_include_directories(lorry_flags INTERFACE ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/include)
target_link_options(lorry_flags INTERFACE -Wl,--gc-sections)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  # g++'s warnings that the sources switch off; what g++'s library uses of itself (stable_sort).
  target_compile_options(lorry_flags INTERFACE
    -Wno-unknown-warning-option -Wno-deprecated-declarations)
endif()

option(LORRY_FUZZ "Build the fuzzers of fuzz/: needs clang" OFF)
if(LORRY_FUZZ)  # coverage in all that is ours, for libFuzzer to see; arithmetic has nothing to be found in
  target_compile_options(lorry_flags INTERFACE -fsanitize=fuzzer-no-link)
  target_compile_definitions(lorry_flags INTERFACE LORRY_ONLY_SCALAR)
endif()

if(LORRY_SANITIZE)
  set(sanitize -fsanitize=${LORRY_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(lorry_flags INTERFACE ${sanitize})
  target_link_options(lorry_flags INTERFACE ${sanitize})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # g++'s instrumentation itself sets these two off, in library headers.
    target_compile_options(lorry_flags INTERFACE -Wno-maybe-uninitialized -Wno-tsan)
  endif()
endif()

find_program(LORRY_CCACHE ccache)
if(LORRY_CCACHE)
  # Line tables name the folder of the build (-g1): without these two, clones would share nothing.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}
    CCACHE_NOHASHDIR=1 ${LORRY_CCACHE})
endif()
find_program(LORRY_MOLD mold)
if(LORRY_MOLD)
  target_link_options(lorry_flags INTERFACE -fuse-ld=mold)
endif()

# Source files that need more than the base instruction set say so in their name.
function(lorry_isa_sources)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
    return()
  endif()
  set(avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16 -mavx512vnni -mfma -mf16c)
  foreach(source IN LISTS ARGN)
    if(source MATCHES "_avx2\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
    elseif(source MATCHES "_avx512\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "${avx512}")
    elseif(source MATCHES "_amx\\.cpp$")
      set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
        "${avx512};-mamx-tile;-mamx-bf16;-mamx-int8")
    endif()
  endforeach()
endfunction()

# lorry_library(NAME DEPS folder... EXTERNAL target... EXCLUDE pattern)
# The static library of src/NAME: lorry_NAME, also lorry::NAME. DEPS are folders of ours: they are
# what its sources may include (tools/check_layers.py compares). EXTERNAL are CMake targets of
# cmake/external.cmake. main.cpp is left out: it belongs to lorry_binary; so is what matches EXCLUDE,
# which the folder adds itself.
function(lorry_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "EXCLUDE" "DEPS;EXTERNAL")
  if(arg_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "lorry_library(${name}): unknown arguments ${arg_UNPARSED_ARGUMENTS}")
  endif()
  set(root ${CMAKE_SOURCE_DIR}/src/${name})
  file(GLOB sources CONFIGURE_DEPENDS ${root}/*.cpp ${root}/*/*.cpp)
  list(REMOVE_ITEM sources ${root}/main.cpp)
  if(arg_EXCLUDE)
    list(FILTER sources EXCLUDE REGEX "${arg_EXCLUDE}")
  endif()
  lorry_isa_sources(${sources})
  list(TRANSFORM arg_DEPS PREPEND lorry::)
  if(sources)
    add_library(lorry_${name} STATIC ${sources})
    target_link_libraries(lorry_${name} PUBLIC lorry_flags ${arg_DEPS} ${arg_EXTERNAL})
  else()  # headers only
    add_library(lorry_${name} INTERFACE)
    target_link_libraries(lorry_${name} INTERFACE lorry_flags ${arg_DEPS} ${arg_EXTERNAL})
  endif()
  add_library(lorry::${name} ALIAS lorry_${name})
endfunction()

# lorry_binary(TARGET FOLDER): the executable of src/FOLDER/main.cpp, placed at the top of the build tree.
function(lorry_binary target folder)
  add_executable(${target} ${CMAKE_SOURCE_DIR}/src/${folder}/main.cpp)
  target_link_libraries(${target} PRIVATE lorry::${folder})
  set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endfunction()

# lorry_embed(NAME SYMBOL FILES file...): the library lorry_NAME with these files (full
# paths) as an array of EmbeddedFile (base/embedded.h) from SYMBOL_begin to SYMBOL_end, in the given order.
function(lorry_embed name symbol)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "" "FILES")
  set(script ${CMAKE_SOURCE_DIR}/cmake/embed.cmake)
  set(source ${CMAKE_CURRENT_BINARY_DIR}/${name}.S)
  add_custom_command(
    OUTPUT ${source}
    COMMAND ${CMAKE_COMMAND} -D SYMBOL=${symbol} -D SOURCE=${source} -D "FILES=${arg_FILES}" -P ${script}
    DEPENDS ${arg_FILES} ${script}
    VERBATIM
    COMMENT "Embedding ${name}")
  set_source_files_properties(${source} PROPERTIES OBJECT_DEPENDS "${arg_FILES}")
  add_library(lorry_${name} STATIC ${source})
endfunction()

# What runs under ThreadSanitizer: the folders with threads in them. CMakePresets.json names the same.
add_custom_target(threaded_tests)
set(LORRY_THREADED_FOLDERS base fetch kv parallel engine serve)

# lorry_tests(NAME): tests/NAME/*_test.cpp as one binary, test_NAME, each case known to ctest under
# the label NAME. Tests find files of the repository under LORRY_SOURCE_DIR, and may include headers
# from tests/ ("engine/fake_clock.h").
function(lorry_tests name)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${name}/*.cpp)
  if(NOT sources)
    return()
  endif()
  add_executable(test_${name} ${sources})
  # Cases run once: a third and more of their compile time would be optimisation. Those of ops compute
  # references.
  if(NOT name STREQUAL "ops")
    set(cases ${sources})
    list(FILTER cases INCLUDE REGEX "_test\\.cpp$")
    set_source_files_properties(${cases} PROPERTIES COMPILE_OPTIONS -O0)
  endif()
  set(filter "")
  if(LORRY_SANITIZE)
    # All models in all modes take minutes: here one in all, and all in one; and one seed of two.
    if(name STREQUAL "engine")
      set(left_out ":All/SchedulerSim.*_2")
      foreach(model mixtral_sliding mixtral_v5_target_parameters dbrx_base)
        foreach(mode F32 F16 int8 int4 fp8 BF16_kv_int8 int4_kv_int8)
          string(APPEND left_out ":Cases/Invariance.*/${model}_${mode}")
        endforeach()
      endforeach()
      set(filter TEST_FILTER "*-${left_out}")
    endif()
  endif()
  target_link_libraries(test_${name} PRIVATE lorry::${name} GTest::gmock GTest::gtest_main)
  target_include_directories(test_${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  set_target_properties(test_${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_compile_definitions(test_${name} PRIVATE LORRY_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  if(name STREQUAL "cli")  # its tests run the real binary
    add_dependencies(test_cli lorry)
    target_compile_definitions(test_cli PRIVATE LORRY_BINARY="$<TARGET_FILE:lorry>")
    target_sources(test_cli PRIVATE ${CMAKE_SOURCE_DIR}/tests/fetch/fake_hub.cpp
      ${CMAKE_SOURCE_DIR}/tests/fetch/fake_server.cpp)
  endif()
  if(name STREQUAL "fetch")  # its tests hold a TLS server
    target_link_libraries(test_fetch PRIVATE OpenSSL::SSL)
  endif()
  if(name IN_LIST LORRY_THREADED_FOLDERS)
    add_dependencies(threaded_tests test_${name})
  endif()
  gtest_discover_tests(test_${name}
    ${filter}
    DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS ${name} TIMEOUT 600)
endfunction()
