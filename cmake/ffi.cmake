# The Rust library in ffi/ (tokenizers, chat templates, constrained decoding) as lorry::ffi.
# Its target folder is shared by all presets: it is the same library for each, and takes minutes.
find_program(LORRY_CARGO cargo HINTS $ENV{HOME}/.cargo/bin)
if(NOT LORRY_CARGO)
  message(FATAL_ERROR "cargo is not found: install Rust 1.87 or newer, or set LORRY_CARGO")
endif()

set(ffi_root ${CMAKE_SOURCE_DIR}/ffi)
set(ffi_target ${CMAKE_SOURCE_DIR}/build/ffi)
set(ffi_library ${ffi_target}/release/liblorry_ffi.a)
file(GLOB ffi_sources CONFIGURE_DEPENDS ${ffi_root}/src/*.rs)

add_custom_command(
  OUTPUT ${ffi_library}
  COMMAND ${LORRY_CARGO} build --release --locked --quiet
          --manifest-path ${ffi_root}/Cargo.toml --target-dir ${ffi_target}
  # cargo leaves the file alone when only times changed, and the command would run each time.
  COMMAND ${CMAKE_COMMAND} -E touch ${ffi_library}
  DEPENDS ${ffi_sources} ${ffi_root}/Cargo.toml ${ffi_root}/Cargo.lock
  USES_TERMINAL
  COMMENT "cargo build of ffi/")
add_custom_target(ffi_build DEPENDS ${ffi_library})

add_library(lorry_ffi STATIC IMPORTED GLOBAL)
add_library(lorry::ffi ALIAS lorry_ffi)
add_dependencies(lorry_ffi ffi_build)
set_target_properties(lorry_ffi PROPERTIES
  IMPORTED_LOCATION ${ffi_library}
  INTERFACE_INCLUDE_DIRECTORIES ${ffi_root}/include
  INTERFACE_LINK_LIBRARIES "${CMAKE_DL_LIBS};m")
